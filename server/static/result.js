// A result: the images of one run, how long each stage took, and ways to make them again.

import { button, duration, element, make } from "./dom.js";
import { rangeOf } from "./entropy.js";
import { Frame } from "./frame.js";
import { copy, curl, python } from "./snippet.js";

const MAX_RESULTS = 20;
const STAGES = {
  queue: "waiting",
  prefill: "first step",
  decode: "predicting",
  complete: "completing",
  vq_decode: "drawing",
  encode: "encoding",
};

const results = element("results");
const toggle = element("entropy");
const all = new Map(); // section -> Result

/** @param {ReturnType<import("./run.js").plan>} run */
export class Result {
  constructor(run, name, model, again) {
    this.run = run;
    this.images = [];
    const about = { name, size: model.image_size, shape: model.latent_shape };
    this.frames = run.cells.map(({ label }) => new Frame({ label, ...about }));
    this.grid = make(
      "div",
      { className: run.requests.length > 1 ? "images comparison" : "images" },
      ...this.frames.map((frame) => frame.node),
    );
    this.actions = make("div", { className: "links" });
    const title = make("h2", {}, run.title, make("small", {}, ` seed ${run.requests[0].seed}`));
    this.head = make("div", { className: "head" }, title, this.actions);
    this.node = make("section", { className: "result", ariaLabel: run.title }, this.head, this.grid);
    this.node.setAttribute("aria-busy", "true");
    this.actions.append(
      button("curl", () => copy("curl", curl(run.requests)), "Copy as curl"),
      button("Python", () => copy("Python", python(run.requests)), "Copy as Python"),
      button("Again", again, "Make these again"),
    );
    element("empty").hidden = true;
    element("toolbar").hidden = false;
    results.prepend(this.node);
    all.set(this.node, this);
    for (const old of [...results.children].slice(MAX_RESULTS)) drop(old);
    if (matchMedia("(max-width: 52rem)").matches) this.node.scrollIntoView({ block: "start" });
  }

  /** An event of one of the requests. */
  hear(request, name, data) {
    const frame = this.#frame(request, data.image ?? data.index);
    if (name === "progress") frame?.advance(data.rows, data.num_rows);
    else if (name === "preview") frame?.preview(data);
    else if (name === "image") this.images.push([frame, data]);
  }

  /** Show the images of those requests that are done; the places of the others go. */
  finish(done) {
    const compared = this.run.requests.length > 1;
    this.frames = this.frames.filter((frame, index) => {
      const seconds = done[this.run.cells[index].request]?.timings;
      const image = this.images.find(([place]) => place === frame)?.[1];
      if (seconds && image) frame.finish(image, compared ? duration(seconds.total) : "");
      else frame.node.remove();
      return seconds && image;
    });
    this.isFinished = true;
    this.node.setAttribute("aria-busy", "false");
    if (!compared) this.node.append(timings(done[0].timings));
    showMaps();
  }

  /** Take away what came to nothing. */
  drop() {
    drop(this.node);
    element("empty").hidden = results.children.length > 0;
    element("toolbar").hidden = results.children.length === 0;
  }

  #frame(request, image) {
    const index = this.run.cells.findIndex(
      (cell) => cell.request === request && cell.image === image,
    );
    return this.frames[index];
  }
}

function drop(node) {
  node.remove();
  all.delete(node);
}

function timings(seconds) {
  const parts = Object.keys(STAGES).filter((stage) => stage in seconds);
  const bar = make("div", { className: "bar" });
  bar.setAttribute("aria-hidden", "true");
  for (const stage of parts) {
    const part = make("i", { className: `stage-${stage}` });
    part.style.flexGrow = String(1e6 * seconds[stage]); // a sum below 1 would not fill the bar
    bar.append(part);
  }
  const rows = parts.map((stage) =>
    make(
      "div",
      {},
      make("dt", { className: `stage-${stage}` }, STAGES[stage]),
      make("dd", {}, duration(seconds[stage])),
    ),
  );
  rows.push(make("div", {}, make("dt", {}, "in all"), make("dd", {}, duration(seconds.total))));
  return make("div", { className: "timings" }, bar, make("dl", {}, ...rows));
}

/** Maps as the switch says, all in one range, so that colours can be compared. */
function showMaps() {
  const finished = [...all.values()].filter((result) => result.isFinished);
  const frames = finished.flatMap((result) => result.frames);
  element("legend").hidden = element("legend-text").hidden = !toggle.checked || !frames.length;
  if (!toggle.checked) {
    frames.forEach((frame) => frame.hideMap());
    return;
  }
  const range = rangeOf(frames);
  frames.forEach((frame) => frame.showMap(range));
  element("legend-low").textContent = `${range[0]} bits`;
  element("legend-high").textContent = `${range[1]} bits`;
}

toggle.addEventListener("change", showMaps);
