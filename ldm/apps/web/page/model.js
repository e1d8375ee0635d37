// The networks, through ONNX Runtime Web, and how an image is generated with them.

import { effort, engines } from "./engine.js";
import { standardNormal } from "./noise.js";
import { time, walk } from "./sampler.js";
import { Tokenizer } from "./tokenizer.js";

/** Files of the site, one after another from the first on; `told` hears what fraction of all bytes is there. */
class Files {
  constructor(settings, told) {
    Object.assign(this, { version: settings.version ?? settings.digest, told, loaded: 0, total: 0, before: Promise.resolve() });
    this.content = new Map();
  }

  /** Starts to load them, after those that were asked for earlier. */
  ask(files) {
    for (const file of files.filter(({ path }) => !this.content.has(path))) {
      this.total += file.bytes;
      this.before = this.before.catch(() => {}).then(() => this.load(file)); // one that fails is not the others' fault
      this.before.catch(() => {}); // whoever takes it hears of it
      this.content.set(file.path, this.before);
    }
  }

  /** The bytes of one, once they are there. */
  take(path) {
    return this.content.get(path);
  }

  async load({ path, bytes }) {
    const answer = await fetch(`${path}?v=${this.version}`);
    if (!answer.ok) throw new Error(`${path} cannot be loaded (${answer.status}): write the site again with ldm web`);
    const content = new Uint8Array(bytes);
    let at = 0;
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      if (at + value.length > bytes) throw new Error(`${path} is not the file that the site was written with`);
      content.set(value, at);
      at += value.length;
      this.loaded += value.length;
      this.told(this.loaded / this.total);
    }
    if (at !== bytes) throw new Error(`${path} is not complete: ${at} of ${bytes} bytes came`);
    return content;
  }
}

const finite = (values) => values.every(Number.isFinite);

export class Model {
  /**
   * The model on the first engine that runs it.
   * @param {object} settings of the site, see ldm/apps/web/site.py
   * @param {object} wish see engine.js
   * @param {{loading: (share: number) => void, preparing: (share: number) => void}} told how far it is
   */
  static async load(settings, wish, told) {
    const files = new Files(settings, told.loading);
    const found = await engines(settings.runtimes, wish);
    for (const engine of found) {
      files.ask([engine.wasm, ...settings.files]);
      try {
        return await Model.on(engine, files, settings, told.preparing);
      } catch (error) {
        if (engine === found.at(-1)) throw error;
      }
    }
  }

  /** Every network is made ready as soon as its files are there, while later ones are still loading. */
  static async on(engine, files, settings, told) {
    const model = new Model();
    const [ort, wasm] = await Promise.all([import(`./${engine.module}`), files.take(engine.wasm.path)]);
    ort.env.wasm.numThreads = engine.threads;
    ort.env.wasm.wasmBinary = wasm.buffer;
    const tensor = (data, dims) => new ort.Tensor("float32", data, dims);
    Object.assign(model, { ort, settings, engine, tensor, known: new Map() });
    model.tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(await files.take(settings.words))), settings);
    const options = { executionProviders: [engine.provider], graphOptimizationLevel: effort(engine, settings) };
    options.logSeverityLevel = 3; // errors: that WebGPU leaves some nodes to the CPU is no warning to anyone
    const sizes = new Map(settings.files.map(({ path, bytes }) => [path, bytes]));
    const weight = ({ weights }) => weights.reduce((sum, path) => sum + sizes.get(path), 0);
    const total = Object.values(settings.networks).reduce((sum, network) => sum + weight(network), 0);
    let ready = 0;
    for (const [name, network] of Object.entries(settings.networks)) {
      const graph = await files.take(network.graph);
      const data = await Promise.all(network.weights.map((path) => files.take(path)));
      const externalData = network.weights.map((path, k) => ({ path: path.split("/").pop(), data: data[k] }));
      model[name] = await ort.InferenceSession.create(graph, { ...options, externalData });
      ready += weight(network);
      told(ready / total);
    }
    if (engine.provider === "webgpu") await model.prove();
    return model;
  }

  /** Runs every network once: shaders are built, and a driver that computes nonsense is found out. */
  async prove() {
    const x = standardNormal(0, this.settings.shape.reduce((a, b) => a * b));
    const prediction = await this.predict(x, 500, [await this.states(this.tokenizer.encode("").ids)]);
    const latents = this.tensor(x, [1, ...this.settings.shape]);
    if (!finite(prediction) || !finite((await this.vae.run({ latents })).picture.data))
      throw new Error("WebGPU computes no numbers here");
  }

  /**
   * One image.
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

  /** The text encoder's output for these tokens; the last ones are remembered, for the next seed. */
  async states(ids) {
    const key = ids.join();
    if (!this.known.has(key)) {
      if (this.known.size > 8) this.known.clear();
      this.known.set(key, await this.encoded(ids));
    }
    return this.known.get(key);
  }

  async encoded(ids) {
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
