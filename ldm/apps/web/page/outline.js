// An image as outlines: its 50 % level set, found in the image enlarged by a windowed sinc. The same first steps as in
// ldm/apps/font/vectorize.py, which goes on to fit curves and sharpen corners; here points stay joined by lines.

const FAINT = 0.25; // an image in which nothing stands out more than this is blank
const ENLARGE = 4;
const PAD = 2; // pixels of ground around, so that every contour closes
const STEP = 0.25; // pixels between points along a contour
const CALMED = 3; // times smoothed by (1, 2, 1) / 4
const SPECK = 2; // square pixels below which a contour is left out
const OFF = 0.03; // pixels by which a line may miss a point

/** How far each pixel is from the ground, the median along the edge, to the ink: 0 to 1, or null if all is ground. */
export function inkOf(pixels, width, height) {
  const colour = (k) => [0, 1, 2].map((c) => pixels[4 * k + c] / 255);
  const edge = Array.from({ length: width * height }, (_, k) => k).filter(
    (k) => k < width || k >= width * (height - 1) || k % width === 0 || k % width === width - 1,
  );
  const ground = [0, 1, 2].map((c) => edge.map((k) => colour(k)[c]).sort((a, b) => a - b)[edge.length >> 1]);
  const ink = Float32Array.from({ length: width * height }, (_, k) => {
    const [r, g, b] = colour(k).map((value, c) => (value - ground[c]) ** 2);
    return Math.sqrt((r + g + b) / 3);
  });
  const most = ink.reduce((a, b) => Math.max(a, b), 0);
  return most < FAINT ? null : ink.map((value) => value / most);
}

/** The closed polygons [[[x, y], ...], ...] of an RGBA image, in its pixels. */
export function trace(pixels, width, height) {
  const ink = inkOf(pixels, width, height);
  if (ink === null) return [];
  const padded = new Float32Array((width + 2 * PAD) * (height + 2 * PAD));
  for (let y = 0; y < height; y++) padded.set(ink.subarray(y * width, (y + 1) * width), (y + PAD) * (width + 2 * PAD) + PAD);
  const [wide, high] = [ENLARGE * (width + 2 * PAD), ENLARGE * (height + 2 * PAD)];
  const rows = enlarged(padded, width + 2 * PAD, height + 2 * PAD);
  const large = transposed(enlarged(transposed(rows, wide), height + 2 * PAD, wide), high);
  return contours(large, wide, high)
    .map((points) => points.map(([x, y]) => [(x + 0.5) / ENLARGE - PAD, (y + 0.5) / ENLARGE - PAD]))
    .filter((points) => Math.abs(area(points)) >= SPECK)
    .map((points) => simple(calmed(evenly(points))));
}

/** Rows made ENLARGE times as long by Lanczos' kernel of three lobes. */
function enlarged(values, width, height) {
  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  const large = new Float32Array(width * ENLARGE * height);
  for (let to = 0; to < width * ENLARGE; to++) {
    const centre = (to + 0.5) / ENLARGE - 0.5;
    const taps = [];
    for (let from = Math.ceil(centre - 3); from <= centre + 3; from++)
      if (from >= 0 && from < width) taps.push([from, sinc(from - centre) * sinc((from - centre) / 3)]);
    const total = taps.reduce((sum, [, weight]) => sum + weight, 0);
    for (let y = 0; y < height; y++) {
      let sum = 0;
      for (const [from, weight] of taps) sum += weight * values[y * width + from];
      large[y * width * ENLARGE + to] = sum / total;
    }
  }
  return large;
}

function transposed(values, width) {
  const height = values.length / width;
  return Float32Array.from({ length: values.length }, (_, k) => values[(k % height) * width + Math.floor(k / height)]);
}

/** Marching squares at 0.5, the ink to the right of the way: every crossed edge leads to the next one. */
function contours(values, width, height) {
  const next = new Map();
  for (let y = 0; y + 1 < height; y++)
    for (let x = 0; x + 1 < width; x++) {
      const at = y * width + x;
      const corners = [values[at], values[at + 1], values[at + width + 1], values[at + width]];
      const inside = corners.map((value) => value >= 0.5);
      const edges = [2 * at, 2 * (at + 1) + 1, 2 * (at + width), 2 * at + 1]; // top, right, bottom, left
      const out = [0, 1, 2, 3].filter((k) => inside[k] && !inside[(k + 1) % 4]);
      const back = [0, 1, 2, 3].filter((k) => !inside[k] && inside[(k + 1) % 4]);
      const joined = corners.reduce((a, b) => a + b) / 4 >= 0.5; // of two opposite corners: whether they touch
      for (const k of out) next.set(edges[k], edges[out.length === 1 ? back[0] : (k + (joined ? 1 : 3)) % 4]);
    }
  const found = [];
  while (next.size) {
    const points = [];
    let edge = next.keys().next().value;
    while (next.has(edge)) {
      points.push(crossing(values, width, edge));
      const after = next.get(edge);
      next.delete(edge);
      edge = after;
    }
    found.push(points);
  }
  return found;
}

function crossing(values, width, edge) {
  const [at, down] = [edge >> 1, edge & 1];
  const [a, b] = [values[at], values[at + (down ? width : 1)]];
  const share = (0.5 - a) / (b - a);
  return [(at % width) + (down ? 0 : share), Math.floor(at / width) + (down ? share : 0)];
}

export function area(points) {
  return points.reduce((sum, [x, y], k) => {
    const [u, v] = points[(k + 1) % points.length];
    return sum + (x * v - u * y) / 2;
  }, 0);
}

/** The polygon with points about STEP apart. */
function evenly(points) {
  const closed = [...points, points[0]];
  const along = [0];
  for (let k = 1; k < closed.length; k++)
    along.push(along[k - 1] + Math.hypot(closed[k][0] - closed[k - 1][0], closed[k][1] - closed[k - 1][1]));
  const count = Math.max(8, Math.round(along.at(-1) / STEP));
  let k = 1;
  return Array.from({ length: count }, (_, i) => {
    const place = (i / count) * along.at(-1);
    while (along[k] < place) k++;
    const share = (place - along[k - 1]) / (along[k] - along[k - 1] || 1);
    return [0, 1].map((axis) => closed[k - 1][axis] + share * (closed[k][axis] - closed[k - 1][axis]));
  });
}

function calmed(points) {
  const count = points.length;
  for (let time = 0; time < CALMED; time++) {
    const [before, after] = [(k) => points[(k + count - 1) % count], (k) => points[(k + 1) % count]];
    points = points.map((point, k) => [0, 1].map((axis) => (before(k)[axis] + 2 * point[axis] + after(k)[axis]) / 4));
  }
  return points;
}

/** Fewer points: Douglas and Peucker (1973), on both halves of the polygon. */
function simple(points) {
  const half = points.length >> 1;
  return [...thinned(points.slice(0, half + 1)).slice(0, -1), ...thinned([...points.slice(half), points[0]]).slice(0, -1)];
}

function thinned(points) {
  const [first, last] = [points[0], points.at(-1)];
  const [dx, dy] = [last[0] - first[0], last[1] - first[1]];
  const length = Math.hypot(dx, dy);
  const off = ([x, y]) =>
    length ? Math.abs(dx * (y - first[1]) - dy * (x - first[0])) / length : Math.hypot(x - first[0], y - first[1]);
  let [worst, most] = [0, OFF];
  for (let k = 1; k + 1 < points.length; k++) if (off(points[k]) > most) [worst, most] = [k, off(points[k])];
  if (!worst) return [first, last];
  return [...thinned(points.slice(0, worst + 1)).slice(0, -1), ...thinned(points.slice(worst))];
}

/** The `d` of an SVG path, moved by `x` and `y` pixels. */
export function path(polygons, x = 0, y = 0) {
  const text = (point) => `${+(point[0] + x).toFixed(2)} ${+(point[1] + y).toFixed(2)}`;
  return polygons.map((points) => `M${points.map(text).join("L")}Z`).join("");
}

/** An SVG document of one black path. */
export function svg(d, width, height, title, note) {
  const legal = (text) => text.replace(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "");
  const plain = (text) => legal(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`;
  return `${head}\n<title>${plain(title)}</title>\n<desc>${plain(note)}</desc>\n<path fill-rule="evenodd" d="${d}"/>\n</svg>\n`;
}
