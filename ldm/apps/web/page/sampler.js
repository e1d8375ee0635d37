// DPM-Solver++ of first or second order over flow sigmas (Lu et al. 2022, arXiv 2211.01095), as ldm/pipelines/torch_free.py takes it.
// alpha = 1 - sigma; at sigma = 1 there is nothing but noise, at 0 nothing but data.

/** Noise levels of `steps` steps, one more than these, and the timesteps that the network is told. */
export function levels(steps, { count, shift }) {
  const step = (1 / count - 1) / steps;
  const sigmas = [];
  for (let i = steps; i > 0; i--) {
    const t = 1 - (i === steps ? 1 / count : i * step + 1);
    sigmas.push((shift * t) / (1 + (shift - 1) * t));
  }
  // levels in single precision, timesteps cut before that, as diffusers does
  return { sigmas: [...sigmas.map(Math.fround), 0], timesteps: sigmas.map((sigma) => Math.trunc(sigma * count)) };
}

/** When in the process a timestep lies, 1 = noise. */
export const time = (timestep, { count, shift }) => timestep / (shift * count - (shift - 1) * timestep);

const lambda = (sigma) => (sigma === 0 ? Infinity : Math.log((1 - sigma) / sigma));

/**
 * From noise to data.
 * @param {(x: Float32Array, timestep: number) => Promise<Float32Array>} predict the velocity, noise - data
 * @param {Float32Array} noise
 * @param {{steps: number, order: number, count: number, shift: number}} how
 * @param {(index: number, x0: Float32Array) => Promise<void>} told after every step, with the data as they seem now
 */
export async function walk(predict, noise, how, told = async () => {}) {
  const { sigmas, timesteps } = levels(how.steps, how);
  let x = noise;
  let before = null;
  for (let i = 0; i < how.steps; i++) {
    const [t, s] = [sigmas[i], sigmas[i + 1]];
    const velocity = await predict(x, timesteps[i]);
    const x0 = x.map((value, k) => value - t * velocity[k]);
    const keep = s / t;
    let next = x.map((value, k) => keep * value + (1 - s - keep * (1 - t)) * x0[k]);
    if (how.order === 2 && before && s > 0) {
      // the change that the last two x0 promise for this step
      const ratio = (lambda(s) - lambda(t)) / (lambda(t) - lambda(before.sigma));
      const weight = 0.5 * (1 - s) * (1 - ((1 - t) * s) / ((1 - s) * t)) * ratio;
      next = next.map((value, k) => value + weight * (x0[k] - before.x0[k]));
    }
    before = { sigma: t, x0 };
    x = next;
    await told(i, x0);
  }
  return x;
}
