// The networks, through ONNX Runtime Web, and how a picture is drawn with them.

import { standardNormal } from "./noise.js";
import { time, walk } from "./sampler.js";
import { Tokenizer } from "./tokenizer.js";

/** The bytes of all `files` [{path, bytes}] by path; `told` hears how much of them is there, 0 to 1. */
async function fetchAll(files, version, told) {
  const total = files.reduce((sum, file) => sum + file.bytes, 0);
  let loaded = 0;
  const content = new Map();
  for (const { path, bytes } of files) {
    const answer = await fetch(`${path}?${version}`);
    if (!answer.ok) throw new Error(`${path} cannot be loaded (${answer.status}): write the site again with ldm web`);
    const whole = new Uint8Array(bytes);
    let at = 0;
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      if (at + value.length > bytes) throw new Error(`${path} is not the file that the site was written with`);
      whole.set(value, at);
      at += value.length;
      told((loaded + at) / total);
    }
    if (at !== bytes) throw new Error(`${path} is not whole: ${at} of ${bytes} bytes came`);
    loaded += bytes;
    content.set(path, whole);
  }
  return content;
}

export class Model {
  /**
   * @param {object} ort the module of ONNX Runtime Web
   * @param {object} settings of the site, see ldm/apps/web/site.py
   */
  static async load(ort, settings, told) {
    const model = new Model();
    const content = await fetchAll(settings.files, settings.digest, told);
    ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
    ort.env.wasm.wasmBinary = content.get("runtime/ort-wasm-simd-threaded.wasm").buffer;
    Object.assign(model, { ort, settings, tensor: (data, dims) => new ort.Tensor("float32", data, dims) });
    model.tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(content.get(settings.words))), settings);
    for (const [name, { graph, weights }] of Object.entries(settings.networks)) {
      const externalData = weights.map((path) => ({ path: path.split("/").pop(), data: content.get(path) }));
      model[name] = await ort.InferenceSession.create(content.get(graph), { externalData, executionProviders: ["wasm"] });
    }
    return model;
  }

  /**
   * One picture.
   * @param {{prompt: string, negative: string, steps: number, guidance: number, seed: number}} job
   * @param {(index: number, x0: Float32Array) => Promise<void>} told see walk
   * @returns {Promise<{pixels: Uint8ClampedArray, lost: string}>} RGBA, and the words that found no room
   */
  async draw(job, told) {
    const { shape, interval } = this.settings;
    const { ids, lost } = this.tokenizer.encode(job.prompt);
    const guided = job.guidance !== 1 && (job.prompt !== "" || job.negative !== "");
    const condition = await this.states(ids);
    const away = guided ? await this.states(this.tokenizer.encode(job.negative).ids) : null;
    const predict = (x, timestep) => {
      const t = time(timestep, this.settings);
      const inside = interval[0] - 1e-6 <= t && t <= interval[1] + 1e-6;
      return guided && inside
        ? this.lead(x, timestep, away, condition, job.guidance)
        : this.predict(x, timestep, [condition]);
    };
    const noise = standardNormal(job.seed, shape.reduce((a, b) => a * b));
    const x0 = await walk(predict, noise, { ...this.settings, steps: job.steps }, told);
    return { pixels: await this.decode(x0), lost };
  }

  async states(ids) {
    const input = new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
    return (await this.text_encoder.run({ input_ids: input })).states;
  }

  /** The U-Net's prediction for one sample under each of the text states, one after another. */
  async predict(x, timestep, states) {
    const rows = states.length;
    const several = new Float32Array(rows * x.length);
    const text = new Float32Array(rows * states[0].size);
    states.forEach((one, row) => {
      several.set(x, row * x.length);
      text.set(one.data, row * one.size);
    });
    const { prediction } = await this.unet.run({
      sample: this.tensor(several, [rows, ...this.settings.shape]),
      timestep: this.tensor(new Float32Array(rows).fill(timestep), [rows]),
      states: this.tensor(text, [rows, ...states[0].dims.slice(1)]),
    });
    return prediction.data;
  }

  /** Guidance: off + scale (on - off), both in one call. */
  async lead(x, timestep, away, condition, scale) {
    const both = await this.predict(x, timestep, [away, condition]);
    return x.map((_, k) => both[k] + scale * (both[x.length + k] - both[k]));
  }

  /** RGBA pixels of latents. */
  async decode(latents) {
    const scaled = this.tensor(latents.map((value) => value / this.settings.scale), [1, ...this.settings.shape]);
    const { data, dims } = (await this.vae.run({ latents: scaled })).picture;
    const [, channels, height, width] = dims;
    const pixels = new Uint8ClampedArray(4 * height * width).fill(255);
    for (let k = 0; k < height * width; k++)
      for (let c = 0; c < Math.max(3, channels); c++)
        pixels[4 * k + c] = Math.round(255 * Math.min(1, Math.max(0, data[(c % channels) * height * width + k] / 2 + 0.5)));
    return pixels;
  }
}
