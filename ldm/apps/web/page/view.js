// Where images are shown: one or nine cells, as pixels or as outlines, and the row of earlier ones.

import { path, svg, trace } from "./outline.js";

const $ = (id) => document.getElementById(id);
const LONG = 512; // pixels that a downloaded image has at least
const KEPT = 18; // earlier images that stay at hand

export class View {
  /** @param {{picture: number[], outline: boolean}} settings of the site */
  constructor({ picture: [channels, height, width], outline }) {
    Object.assign(this, { width, height, columns: 1, cells: [], outlined: outline });
    this.canvas = $("canvas");
    this.canvas.classList.toggle("transparent", channels === 4);
    this.canvas.classList.toggle("smooth", !outline);
    this.lay(1);
  }

  /** Make room for that many images; what was shown goes. */
  lay(images) {
    this.columns = Math.round(Math.sqrt(images));
    this.cells = Array(images).fill(null);
    Object.assign(this.canvas, { width: this.columns * this.width, height: this.columns * this.height });
    this.refresh();
  }

  /** RGBA pixels in a cell; a finished image is also outlined. */
  show(pixels, cell, finished) {
    const [x, y] = this.corner(cell);
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.putImageData(new ImageData(pixels, this.width, this.height), x, y);
    this.cells[cell] = finished ? { pixels, outline: null } : null;
    this.refresh();
  }

  corner(cell) {
    return [(cell % this.columns) * this.width, Math.floor(cell / this.columns) * this.height];
  }

  /** The outlines of all finished cells as one path, while they are what is looked at. */
  outline() {
    const paths = this.cells.map((cell, k) => {
      if (!cell) return "";
      cell.outline ??= trace(cell.pixels, this.width, this.height);
      return path(cell.outline, ...this.corner(k));
    });
    return paths.join("");
  }

  /** Pixels and unfinished images are on the canvas, outlines in front of it. */
  refresh() {
    const all = this.outlined && this.cells.every((cell) => cell);
    $("outline").toggleAttribute("hidden", !all);
    this.canvas.hidden = all;
    if (!all) return;
    $("outline").setAttribute("viewBox", `0 0 ${this.canvas.width} ${this.canvas.height}`);
    $("path").setAttribute("d", this.outline());
  }

  name(text) {
    this.canvas.setAttribute("aria-label", text);
    $("outline").setAttribute("aria-label", text);
  }

  svg(title, note) {
    return new Blob([svg(this.outline(), this.canvas.width, this.canvas.height, title, note)], { type: "image/svg+xml" });
  }

  get scale() {
    return Math.ceil(LONG / this.canvas.width);
  }

  /** The bytes of a PNG, enlarged pixel by pixel. */
  async png() {
    const [width, height] = [this.scale * this.canvas.width, this.scale * this.canvas.height];
    const large = Object.assign(document.createElement("canvas"), { width, height });
    const context = large.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this.canvas, 0, 0, width, height);
    const blob = await new Promise((resolve) => large.toBlob(resolve, "image/png"));
    return new Uint8Array(await blob.arrayBuffer());
  }
}

/** An image that was drawn before and lies in the site, as RGBA pixels. */
export async function pixelsOf(address, width, height) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

/** Adds a button with the image to the earlier ones; `chosen` is called when it is pressed. */
export function remember({ pixels, width, height, label }, chosen) {
  const button = Object.assign(document.createElement("button"), { type: "button", title: label, onclick: chosen });
  button.setAttribute("aria-label", label);
  const small = Object.assign(document.createElement("canvas"), { width, height });
  small.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  button.append(small);
  $("earlier").prepend(button);
  $("history").hidden = false;
  while ($("earlier").children.length > KEPT) $("earlier").lastChild.remove();
}
