// One image: its place while it waits, its rows as they come, itself, and its entropy map.

import { button, element, make } from "./dom.js";
import { cellOf, describe, drawMap, mapRows, positionAt } from "./entropy.js";
import { useSeed } from "./form.js";

const SMOOTH_FROM = 128; // pixels a side; smaller images show their pixels

/** @param {{label: string, name: string, size: number, shape: number[]}} about */
export class Frame {
  constructor(about) {
    this.about = about;
    this.picture = make("div", { className: "picture" });
    // A sequence has no rows: every preview is the whole picture.
    this.line = make("div", { className: "line", hidden: about.shape[0] === 1 });
    this.box = make("div", { className: "frame waiting" }, this.picture, this.line);
    this.caption = make("figcaption");
    this.node = make("figure", {}, this.box, this.caption);
    if (about.label) this.node.prepend(make("p", { className: "label" }, about.label));
    this.box.classList.toggle("pixels", about.size < SMOOTH_FROM);
    this.entropies = null;
    this.rows = mapRows(about.shape);
    this.bits = make("p", { className: "readout" });
  }

  /** So many rows are predicted, or tokens of a sequence. */
  advance(rows, numRows) {
    this.line.style.top = `${(100 * rows) / numRows}%`;
    this.box.classList.add("drawing");
  }

  /** The upper rows, of a sequence the whole image; with other details, where they are provisional. */
  preview({ rows, num_rows: numRows, format, provisional, b64 }) {
    const image = this.picture.querySelector("img") ?? make("img", { alt: "" });
    if (provisional) this.caption.textContent = "Details come at the end";
    image.src = `data:image/${format};base64,${b64}`;
    image.style.height = this.about.shape[0] > 1 ? `${(100 * rows) / numRows}%` : "";
    if (!image.isConnected) this.picture.append(image);
    this.advance(rows, numRows);
  }

  /** The image itself. */
  finish(image, seconds) {
    const { name, label } = this.about;
    const source = `data:image/${image.format};base64,${image.b64}`;
    const what = [name, label, `seed ${image.seed}`].filter(Boolean).join(", ");
    this.image = make("img", { src: source, alt: `Generated: ${what}` });
    this.picture.replaceChildren(this.image);
    this.box.classList.remove("waiting", "drawing");
    this.line.remove();
    this.entropies = image.entropies;
    this.clusterEntropies = image.cluster_entropies;
    const file = `${name}-${label}-${image.seed}.${image.format}`.replaceAll(/[^\w.]+/g, "-");
    const again = button("Use seed", () => {
      useSeed(image.seed);
      element("seed").focus();
    }, `Use seed ${image.seed}`);
    const save = make("a", { href: source, download: file, textContent: "Save" });
    save.ariaLabel = `Save the image of ${what}`;
    const share = `${Math.round(image.entropy_ratio * 100)}\u00a0%`;
    this.caption.replaceChildren(
      ...(label ? [] : [make("p", {}, `Seed ${image.seed}`)]),
      make("p", { title: "Mean entropy of the predictions, and its share of the most possible" },
        `${image.entropy_bits.toFixed(2)} bits${label ? "" : " a position"}, ${share}`),
      ...(image.cluster_entropies
        ? [make("p", { title: "The same of the clusters of the model's partition" },
            `clusters ${image.cluster_entropy_bits.toFixed(2)} bits, ${Math.round(image.cluster_entropy_ratio * 100)}\u00a0%`)]
        : []),
      ...(seconds ? [make("p", {}, seconds)] : []),
      make("p", { className: "links" }, again, save),
    );
  }

  /** Take the map away. */
  hideMap() {
    this.box.querySelector("canvas")?.remove();
    this.marker?.remove();
    this.probe?.remove();
    this.bits.remove();
  }

  /** Lay the map over the image. */
  showMap(range) {
    this.hideMap();
    if (!this.entropies) return;
    const canvas = make("canvas");
    canvas.setAttribute("aria-hidden", "true");
    drawMap(canvas, this.rows, this.entropies, range);
    this.marker = make("div", { className: "marker", hidden: true });
    this.box.append(canvas, this.marker);
    this.probe = this.#probe();
    this.bits.textContent = "\u00a0";
    this.box.after(this.probe, this.bits);
  }

  #probe() {
    const probe = make("input", {
      type: "range",
      className: "probe",
      min: "0",
      max: String(this.entropies.length - 1),
      value: "0",
      ariaLabel: "Position in the entropy map",
    });
    const show = () => this.#point(Number(probe.value));
    probe.addEventListener("input", show);
    probe.addEventListener("focus", show);
    probe.addEventListener("keydown", (event) => this.#step(event));
    this.box.onpointermove = this.box.onpointerdown = (event) => this.#follow(event);
    probe.setAttribute("aria-valuetext", this.#described(0));
    return probe;
  }

  /** Up and down go by rows. */
  #step(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const [row, column] = cellOf(this.rows, Number(this.probe.value));
    if (!this.rows[row + by]) return;
    const at = (column + 0.5) / this.rows[row];
    this.#point(positionAt(this.rows, at, (row + by + 0.5) / this.rows.length));
  }

  #follow(event) {
    if (!this.probe?.isConnected) return;
    const { left, top, width, height } = this.box.getBoundingClientRect();
    const [x, y] = [(event.clientX - left) / width, (event.clientY - top) / height];
    this.#point(positionAt(this.rows, x, y));
  }

  #described(position) {
    return describe(this.rows, this.entropies, position, this.clusterEntropies);
  }

  #point(position) {
    const text = this.#described(position);
    this.probe.value = String(position);
    this.probe.setAttribute("aria-valuetext", text);
    this.bits.textContent = text;
    const [row, column] = cellOf(this.rows, position);
    const { style } = this.marker;
    style.width = `${100 / this.rows[row]}%`;
    style.height = `${100 / this.rows.length}%`;
    style.left = `${(100 * column) / this.rows[row]}%`;
    style.top = `${(100 * row) / this.rows.length}%`;
    this.marker.hidden = false;
  }
}
