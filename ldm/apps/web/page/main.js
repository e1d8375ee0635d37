// The page: settings in, images out.

import { chosen, compose } from "./chips.js";
import { threads } from "./engine.js";
import { anySeed, FIELDS, fileName, fromHash, toHash } from "./link.js";
import { keep, prepare } from "./offline.js";
import { withText } from "./png.js";
import { pixelsOf, remember, View } from "./view.js";

const $ = (id) => document.getElementById(id);
const LOADING = 0.6; // of the progress bar; the rest is preparing
const wish = Object.fromEntries(new URLSearchParams(location.search));
let settings = null;
let view = null;
let worker = null;
let ready = false;
let running = null; // the job that is being drawn
let drawn = null; // the job whose images are shown
let jobs = 0;
let kept = false; // whether the service worker was asked to keep the page

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

function busy(job) {
  running = job;
  $("draw").textContent = job ? "Stop" : "Draw";
  $("canvas").setAttribute("aria-busy", String(job !== null));
  for (const id of ["download", "vector", "copy"]) $(id).disabled = job !== null || drawn === null;
}

const titleOf = ({ prompt, seed }) => `${prompt ? `Image of: ${prompt}` : "An image of no prompt"}, seed ${seed}`;

/** The worker's messages by kind. Those of a job that another one took the place of are not heard. */
const answers = {
  loading({ share }) {
    $("progress").value = LOADING * share;
    say(share < 1 ? `Loading the model, ${Math.round(100 * share)} % of ${settings.megabytes} MB` : "Preparing the model ...");
  },
  preparing({ share }) {
    $("progress").value = Math.max($("progress").value, LOADING + (1 - LOADING) * share);
    say(`Preparing the model, ${Math.round(100 * share)} %`);
  },
  ready({ provider, threads: used }) {
    ready = true;
    $("draw").disabled = false;
    $("about").dataset.engine = `${provider} ${used}`;
    say("Ready.");
    draw();
  },
  step({ cell, index, pixels }) {
    const { images, steps } = running;
    $("progress").value = (cell + (index + 1) / steps) / images;
    say(`Step ${index + 1} of ${steps}${images > 1 ? `, image ${cell + 1} of ${images}` : ""}`);
    if (!pixels || images > 1) return;
    if (view.cells.length > 1) view.lay(1);
    view.show(pixels, cell, false);
  },
  image({ cell, seed, pixels }) {
    if (view.cells.length !== running.images) view.lay(running.images);
    view.show(pixels, cell, true);
    $("caption").hidden = true;
    const job = { ...running, seed, images: 1 };
    remember({ pixels, width: view.width, height: view.height, label: titleOf(job) }, () => pick(job, pixels));
  },
  done({ lost, seconds }) {
    drawn = running;
    busy(null);
    if (!kept) keep(Object.values(settings.runtimes).flatMap((runtime) => runtime?.module ?? []));
    kept = true;
    view.name(titleOf(drawn));
    say(`Seed ${drawn.seed}, ${seconds.toFixed(1)} s.${lost ? ` The prompt is too long, these words were lost: ${lost}` : ""}`);
  },
  stopped() {
    drawn = null;
    busy(null);
    say("Stopped.");
  },
  error({ text }) {
    drawn = null;
    busy(null);
    say(text, true);
  },
};

function hear({ data }) {
  if (data.id === undefined || data.id === running?.id) answers[data.kind](data);
}

/** Draw what the fields say, in place of what is being drawn; before the model is there, show what was drawn beforehand. */
function draw() {
  mark();
  if (!ready) return poster();
  if (!$("form").checkValidity()) $("more").open = true;
  if (!$("form").reportValidity()) return;
  const job = { id: ++jobs, preview: $("preview").checked && jobs > 1 };
  for (const name of FIELDS) job[name] = $(name).type === "number" ? $(name).valueAsNumber : $(name).value;
  job.images = Number(job.images);
  history.replaceState(null, "", toHash(job));
  $("progress").value = 0;
  drawn = null;
  if (job.images > 1) view.lay(job.images);
  busy(job);
  $("canvas").parentElement.scrollIntoView({ block: "nearest" });
  worker.postMessage(job);
}

function fill(values) {
  for (const [name, value] of Object.entries(values)) $(name).value = value;
  if (!$("images").value) $("images").value = "1";
}

/** Show an earlier image again. */
function pick(job, pixels) {
  if (running) worker.postMessage(null);
  fill(Object.fromEntries(FIELDS.map((name) => [name, job[name]])));
  mark();
  drawn = job;
  busy(null);
  view.lay(1);
  view.show(pixels, 0, true);
  view.name(titleOf(job));
  $("caption").hidden = true;
  history.replaceState(null, "", toHash(job));
  say(`Seed ${job.seed}.`);
}

async function poster() {
  const { posters = [], picture: [, height, width] } = settings;
  const found = posters.find(({ prompt }) => prompt === $("prompt").value);
  if (!found) return;
  const pixels = await pixelsOf(`${found.path}?v=${settings.version}`, width, height);
  if (drawn || running?.images > 1 || found.prompt !== $("prompt").value) return;
  view.lay(1);
  view.show(pixels, 0, true);
  view.name(`Drawn beforehand. ${titleOf(found)}`);
  const how = `“${found.prompt}”, seed ${found.seed}`;
  $("caption").textContent = `Drawn beforehand: ${how}. Your own follows when the model is loaded.`;
  $("caption").hidden = false;
}

function save(blob, ending) {
  const href = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href, download: `${fileName(drawn)}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

/** What `ldm generate --from` draws the image again with. */
function record() {
  const { prompt, negative, seed, steps, guidance } = drawn;
  const { interval, digest, model } = settings;
  const grid = `${view.columns}x${view.columns}`;
  const words = { prompt: prompt || null, negative: negative || null };
  return JSON.stringify({ model, ...words, grid, seed, steps, guidance, interval, scale: view.scale, digest });
}

async function copy() {
  const address = location.href.split("#")[0] + toHash(drawn);
  try {
    await navigator.clipboard.writeText(address);
    say("Link copied: it draws this image again.");
  } catch {
    say("The browser does not let the page copy: the address above is the link.");
  }
}

// ---- what a model brings ---------------------------------------------------------------------------------------------

function chip(text, label, press) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
  button.dataset.text = text;
  button.onclick = () => {
    press();
    draw();
  };
  return button;
}

function group(name, chips) {
  const box = Object.assign(document.createElement("div"), { className: "chips" });
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", name);
  box.append(Object.assign(document.createElement("span"), { textContent: name }), ...chips);
  $("chips").append(box);
}

function addChips() {
  const { prompts, chips = [] } = settings;
  const set = (prompt) => { $("prompt").value = prompt; };
  if (prompts.length) group("Examples", prompts.map((prompt) => chip(prompt, prompt, () => set(prompt))));
  chips.forEach(({ name, phrases }, index) =>
    group(name, phrases.map(({ text, label }) => chip(text, label, () => set(compose($("prompt").value, chips, index, text))))));
}

/** Which phrases the prompt has. */
function mark() {
  const groups = [...$("chips").children].slice(settings.prompts.length ? 1 : 0);
  groups.forEach((box, index) => {
    const text = chosen($("prompt").value, settings.chips[index]);
    for (const button of box.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.text === text));
  });
}

function fillIn() {
  view = new View(settings);
  document.title = settings.title ? `${settings.title} · ${settings.name}` : settings.name;
  if (settings.title) [$("title").textContent, $("hint").textContent] = [settings.title, settings.hint];
  $("about").textContent = `Model ${settings.name}, weights ${settings.digest}.`;
  $("look").hidden = $("vector").hidden = !settings.outline;
  $("few").hidden = settings.guidance !== 1 || settings.steps > 8;
  addChips();
  const { steps, guidance, prompts } = settings;
  fill({ steps, guidance, prompt: prompts[0] ?? "", seed: anySeed(), ...fromHash(location.hash) });
  mark();
}

async function start() {
  if (typeof WebAssembly !== "object")
    throw new Error("This browser has no WebAssembly (or it is switched off), so it cannot draw here.");
  const again = prepare(threads(wish));
  const answer = await fetch("settings.json", { cache: "no-cache" });
  if (!answer.ok) throw new Error("settings.json is missing: write the site again with ldm web.");
  settings = await answer.json();
  fillIn();
  poster().catch(() => {}); // without it the page works as well
  if (await again) return;
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = hear;
  worker.onerror = (event) => say(`The model cannot run here: ${event.message ?? "its worker did not start"}`, true);
  worker.postMessage({ settings, wish });
}

// ---- what people press -----------------------------------------------------------------------------------------------

function anotherSeed() {
  $("seed").value = anySeed();
  draw();
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  if (running) worker.postMessage(null);
  else draw();
};
$("dice").onclick = anotherSeed;
$("images").onchange = () => draw();
$("prompt").oninput = () => settings && mark();
$("copy").onclick = copy;
$("download").onclick = async () =>
  save(new Blob([withText(await view.png(), "ldm", record())], { type: "image/png" }), "png");
$("vector").onclick = () => save(view.svg(drawn.prompt, record()), "svg");
$("look").onclick = () => {
  view.outlined = !view.outlined;
  $("look").setAttribute("aria-pressed", String(view.outlined));
  view.refresh();
};
document.onkeydown = (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key.toLowerCase() === "r" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && settings) anotherSeed();
};
$("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
document.documentElement.dataset.runs = "";
start().catch((error) => say(error.message, true));
