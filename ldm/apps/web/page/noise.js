// The noise of a seed: what torch.randn gives a CPU generator of that seed, to a rounding error; see ldm/pipelines/torch_free.py.

/** The first `count` 32-bit words of the Mersenne twister MT19937 (Matsumoto and Nishimura 1998). */
export function twister(seed, count) {
  const state = new Uint32Array(624);
  state[0] = seed % 2 ** 32;
  for (let i = 1; i < 624; i++) {
    const before = state[i - 1] ^ (state[i - 1] >>> 30);
    state[i] = Math.imul(1812433253, before) + i;
  }
  const words = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    if (i % 624 === 0) twist(state);
    let word = state[i % 624];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    words[i] = word ^ (word >>> 18);
  }
  return words;
}

function twist(state) {
  for (let i = 0; i < 624; i++) {
    const mixed = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
    state[i] = state[(i + 397) % 624] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
  }
}

/** `size` normal numbers, 16 or more: 24 bits each, by pairs that lie eight apart, a rest drawn anew over the end. */
export function standardNormal(seed, size) {
  if (size < 16) throw new RangeError(`16 numbers or more are needed, got ${size}`);
  const rest = size % 16;
  const words = twister(seed, size + (rest ? 16 : 0));
  const values = new Float32Array(size);
  for (let start = 0; start + 16 <= size; start += 16) boxMuller(words, start, values, start);
  if (rest) boxMuller(words, size, values, size - 16);
  return values;
}

function boxMuller(words, from, values, to) {
  const uniform = (i) => (words[from + i] & 0xffffff) / 2 ** 24;
  for (let i = 0; i < 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform(i)));
    const angle = Math.fround(2 * Math.PI) * uniform(i + 8);
    values[to + i] = radius * Math.cos(angle);
    values[to + i + 8] = radius * Math.sin(angle);
  }
}
