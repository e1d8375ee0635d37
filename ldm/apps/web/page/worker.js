// Generates beside the page, so that it stays alive. In: first {settings, wish}, then jobs (see Model.draw; with `id` and
// `images`, how many seeds from `seed` on), or null = stop.

import { Model } from "./model.js";

class Stopped extends Error {}

const EVERY = 1000; // milliseconds between two previews: each takes as long as a step
let model = null;
let current = null;
let turn = Promise.resolve(); // one job at a time: a stopped one ends before the next begins
const pause = () => new Promise((resolve) => setTimeout(resolve)); // lets a newer message in

async function load({ settings, wish }) {
  let over = false; // files that are still on their way after an error are no news
  const tell = (kind) => (share) => over || postMessage({ kind, share });
  try {
    model = await Model.load(settings, wish, { loading: tell("loading"), preparing: tell("preparing") });
  } finally {
    over = true;
  }
  const { provider, threads } = model.engine;
  postMessage({ kind: "ready", provider, threads });
}

async function draw(job) {
  const start = performance.now();
  let shown = start;
  let lost = "";
  for (let cell = 0; cell < job.images; cell++) {
    const told = async (index, x0) => {
      await pause();
      if (current !== job) throw new Stopped();
      const due = job.preview && index + 1 < job.steps && performance.now() - shown > EVERY;
      const pixels = due ? await model.decode(x0) : null;
      if (due) shown = performance.now();
      postMessage({ kind: "step", id: job.id, cell, index, pixels });
    };
    const seed = job.seed + cell;
    const found = await model.draw({ ...job, seed }, told);
    lost = found.lost;
    postMessage({ kind: "image", id: job.id, cell, seed, pixels: found.pixels });
  }
  postMessage({ kind: "done", id: job.id, lost, seconds: (performance.now() - start) / 1000 });
}

async function drawn(job) {
  try {
    if (current === job) await draw(job);
    else throw new Stopped();
  } catch (error) {
    if (error instanceof Stopped) postMessage({ kind: "stopped", id: job.id });
    else postMessage({ kind: "error", id: job.id, text: String(error.message ?? error) });
  }
}

onmessage = ({ data }) => {
  if (model === null) return load(data).catch((error) => postMessage({ kind: "error", text: String(error.message ?? error) }));
  current = data;
  if (data) turn = turn.then(() => drawn(data));
};
