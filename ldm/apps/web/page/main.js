// The page: settings in, pictures out. What is drawn stands in the address too, so that a link draws it again.

import { withText } from "./png.js";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const FIELDS = ["prompt", "negative", "seed", "steps", "guidance"];
const LONG = 512; // pixels that a downloaded picture has at least
let settings = null;
let worker = null;
let running = null; // the job that is being drawn
let drawn = null; // the job whose picture is shown

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

function show(pixels) {
  const [, height, width] = settings.picture;
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(new ImageData(pixels, width, height), 0, 0);
}

function busy(job) {
  running = job;
  $("draw").textContent = job ? "Stop" : "Draw";
  canvas.setAttribute("aria-busy", String(job !== null));
}

const answers = {
  loading({ share }) {
    $("progress").value = share;
    say(`Loading the model, ${Math.round(100 * share)} % of ${settings.megabytes} MB`);
    if (share === 1) say("Preparing the model ...");
  },
  ready() {
    $("draw").disabled = false;
    say("Ready.");
    if (location.hash.length > 1) draw();
  },
  step({ index, pixels }) {
    $("progress").value = (index + 1) / running.steps;
    say(`Step ${index + 1} of ${running.steps}`);
    if (pixels) show(pixels);
  },
  done({ pixels, lost, seconds }) {
    show(pixels);
    drawn = running;
    busy(null);
    canvas.setAttribute("aria-label", drawn.prompt ? `Picture of: ${drawn.prompt}` : "A picture of no prompt");
    $("download").disabled = false;
    say(`Seed ${drawn.seed}, ${seconds.toFixed(1)} s.${lost ? ` The prompt is too long, these words were lost: ${lost}` : ""}`);
  },
  stopped() {
    busy(null);
    say("Stopped.");
  },
  error({ text }) {
    busy(null);
    say(text, true);
  },
};

function draw() {
  if (running) return worker.postMessage(null);
  if (!$("form").reportValidity()) return;
  const job = { preview: $("preview").checked };
  for (const name of FIELDS) job[name] = $(name).type === "number" ? $(name).valueAsNumber : $(name).value;
  history.replaceState(null, "", `#${new URLSearchParams(FIELDS.map((name) => [name, job[name]]))}`);
  $("progress").value = 0;
  $("download").disabled = true;
  busy(job);
  canvas.scrollIntoView({ block: "nearest" });
  worker.postMessage(job);
}

/** The picture as a PNG with its settings, enlarged pixel by pixel. */
async function png() {
  const scale = Math.ceil(LONG / canvas.width);
  const large = Object.assign(document.createElement("canvas"), { width: scale * canvas.width, height: scale * canvas.height });
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, large.width, large.height);
  const blob = await new Promise((resolve) => large.toBlob(resolve, "image/png"));
  const { prompt, negative, seed, steps, guidance } = drawn;
  const { interval, digest, model } = settings;
  const job = { model, prompt: prompt || null, negative: negative || null, grid: "1x1", seed, steps, guidance, interval, scale, digest };
  return withText(new Uint8Array(await blob.arrayBuffer()), "ldm", JSON.stringify(job));
}

async function download() {
  const address = URL.createObjectURL(new Blob([await png()], { type: "image/png" }));
  const name = drawn.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "picture";
  Object.assign(document.createElement("a"), { href: address, download: `${name}-${drawn.seed}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function fillIn() {
  const [channels, height, width] = settings.picture;
  Object.assign(canvas, { width, height });
  canvas.classList.toggle("transparent", channels === 4);
  document.title = `${settings.name}: pictures from words`;
  $("about").textContent = `Model ${settings.name}, weights ${settings.digest}.`;
  $("steps").value = settings.steps;
  $("guidance").value = settings.guidance;
  $("prompt").value = settings.prompts[0] ?? "";
  for (const prompt of settings.prompts) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: prompt });
    button.onclick = () => { $("prompt").value = prompt; };
    $("examples").append(button);
  }
  for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
    if (FIELDS.includes(name)) $(name).value = value;
}

async function start() {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly (or it is switched off), so it cannot draw here.");
  const answer = await fetch("settings.json", { cache: "no-cache" });
  if (!answer.ok) throw new Error("settings.json is missing: write the site again with ldm web.");
  settings = await answer.json();
  fillIn();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => answers[data.kind](data);
  worker.onerror = (event) => say(`The model cannot run here: ${event.message ?? "its worker did not start"}`, true);
  worker.postMessage(settings);
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  draw();
};
$("dice").onclick = () => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  if (!running && !$("draw").disabled) draw();
};
$("download").onclick = download;
$("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
document.documentElement.dataset.runs = "";
start().catch((error) => say(error.message, true));
