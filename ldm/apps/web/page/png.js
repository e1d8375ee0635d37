// A text entry in a PNG, where `ldm generate --from` finds the settings of a picture.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** The PNG with an iTXt chunk (PNG specification, section 11.3.3.4) before its end. */
export function withText(png, keyword, text) {
  const encode = (string) => new TextEncoder().encode(string);
  const body = [...encode("iTXt"), ...encode(keyword), 0, 0, 0, 0, 0, ...encode(text)]; // plain, of no language
  const chunk = new Uint8Array(body.length + 8);
  chunk.set(body, 4);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  view.setUint32(4 + body.length, crc32(body));
  const end = png.length - 12; // the IEND chunk
  return Uint8Array.from([...png.subarray(0, end), ...chunk, ...png.subarray(end)]);
}
