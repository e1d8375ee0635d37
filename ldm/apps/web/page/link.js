// What is generated stands in the address, so that a link generates it again.

export const FIELDS = ["prompt", "negative", "seed", "steps", "guidance", "images"];

/** The part of an address after # for a job. */
export const toHash = (job) => `#${new URLSearchParams(FIELDS.map((name) => [name, job[name]]))}`;

/** The settings that an address has, by field, as strings; anything else in it is left out. */
export function fromHash(hash) {
  const given = [...new URLSearchParams(hash.replace(/^#/, ""))];
  return Object.fromEntries(given.filter(([name]) => FIELDS.includes(name)));
}

/** A seed that nobody chose. */
export const anySeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** A file name without an ending. */
export function fileName({ prompt, seed }) {
  return `${prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "image"}-${seed}`;
}
