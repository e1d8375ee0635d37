// What runs the networks: WebAssembly with as many threads as the page may have, or on request WebGPU.

const MOST = 4; // threads: networks of this size gain nothing from more

export function threads(wish) {
  // half of the cores: threads that wait for each other spin, which is worse than none where others want the core
  return Number(wish.threads) || Math.min(MOST, Math.ceil((navigator.hardwareConcurrency || 1) / 2));
}

/**
 * The engines to try, the best first.
 * @param {{gpu: object | null, cpu: object}} runtimes {module, wasm: {path, bytes}} each
 * @param {{engine?: string, threads?: string}} wish of the address: ?engine=webgpu, ?threads=N
 */
export async function engines({ gpu, cpu }, wish) {
  const slow = { ...cpu, provider: "wasm", threads: crossOriginIsolated ? threads(wish) : 1 };
  if (!gpu || wish.engine !== "webgpu" || !(await hasGpu())) return [slow];
  return [{ ...gpu, provider: "webgpu", threads: 1 }, slow];
}

/** Whether there is a WebGPU that ONNX Runtime's build for it can use. */
async function hasGpu() {
  if (!navigator.gpu || !("Suspending" in WebAssembly)) return false;
  try {
    return (await navigator.gpu.requestAdapter()) !== null;
  } catch {
    return false;
  }
}

/**
 * How much a session is optimized before its first run. That takes as long as many runs of a few steps, which it hardly
 * speeds up; shaders need it.
 */
export const effort = ({ provider }, { steps, guidance }) =>
  provider === "wasm" && steps * (guidance === 1 ? 1 : 2) <= 8 ? "disabled" : "all";
