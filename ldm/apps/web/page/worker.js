// Draws beside the page, so that it stays alive. In: first the settings, then jobs (see Model.draw), or null = stop.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { Model } from "./model.js";

class Stopped extends Error {}

let model = null;
let current = null;
const pause = () => new Promise((resolve) => setTimeout(resolve)); // lets a newer message in
const fail = (error) => postMessage({ kind: "error", text: String(error.message ?? error) });

async function load(settings) {
  model = await Model.load(ort, settings, (share) => postMessage({ kind: "loading", share }));
  postMessage({ kind: "ready" });
}

async function draw(job) {
  const start = performance.now();
  const told = async (index, x0) => {
    await pause();
    if (current !== job) throw new Stopped();
    const pixels = job.preview && index + 1 < job.steps ? await model.decode(x0) : null;
    postMessage({ kind: "step", index, pixels });
  };
  const { pixels, lost } = await model.draw(job, told);
  postMessage({ kind: "done", pixels, lost, seconds: (performance.now() - start) / 1000 });
}

onmessage = async ({ data }) => {
  try {
    if (model === null) return await load(data);
    current = data;
    if (data) await draw(data);
  } catch (error) {
    if (error instanceof Stopped) postMessage({ kind: "stopped" });
    else fail(error);
  }
};
