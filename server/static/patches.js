// The sheet of patches: what each code of the codebook looks like.

import { make } from "./dom.js";

/** @param {{side: number, columns: number}} layout */
export class Patches {
  static async load(path, layout) {
    const image = new Image();
    image.src = path;
    await image.decode().catch(() => {
      throw new Error("The pictures of the codes could not be loaded.");
    });
    return new Patches(image, layout);
  }

  constructor(image, layout) {
    this.image = image;
    this.layout = layout;
  }

  /** Draw a code into a square of a canvas. */
  draw(context, code, left, top, side) {
    const { side: from, columns } = this.layout;
    const x = (code % columns) * from;
    const y = Math.floor(code / columns) * from;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, x, y, from, from, left, top, side, side);
  }

  /** Codes of a cluster on a new canvas: few are shown large. */
  card(codes) {
    const columns = Math.min(codes.length, 6);
    return this.mosaic(codes, columns, Math.min(36, Math.floor(113 / columns)));
  }

  /** Codes side by side on a new canvas, in rows of `columns`, each `side` pixels wide. */
  mosaic(codes, columns, side) {
    const wide = Math.min(columns, codes.length);
    const gap = 1;
    const scale = Math.ceil(devicePixelRatio);
    const canvas = make("canvas", { className: "mosaic" });
    const rows = Math.ceil(codes.length / wide);
    canvas.width = (wide * (side + gap) - gap) * scale;
    canvas.height = (rows * (side + gap) - gap) * scale;
    canvas.style.width = `${canvas.width / scale}px`;
    canvas.setAttribute("aria-hidden", "true");
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    codes.forEach((code, index) => {
      const left = (index % wide) * (side + gap);
      this.draw(context, code, left, Math.floor(index / wide) * (side + gap), side);
    });
    return canvas;
  }
}
