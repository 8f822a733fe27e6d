// The form: what it offers for a model, what was chosen in it, and what is wrong with that.

import { choose, chosenClass } from "./classes.js";
import { element, make, tell } from "./dom.js";
import { Problem } from "./service.js";

const MOST_COMPARED = 8;
const MAX_SEED = Number.MAX_SAFE_INTEGER - 16; // so that the seed of every image is exact
const DRAWN_BELOW = 2 ** 31; // a drawn seed is short enough to be read out

// Fields of a request whose controls hold their values, and the controls.
const VALUES = {
  cfg_scale: "cfg",
  cfg_schedule: "cfg-schedule",
  cfg_start: "cfg-start",
  num_images: "count",
  temperature: "temperature",
  top_k: "top-k",
  top_p: "top-p",
  cluster_top_k: "cluster-top-k",
  cluster_top_p: "cluster-top-p",
  code_temperature: "code-temperature",
  code_top_k: "code-top-k",
  code_cfg_scale: "code-cfg-scale",
  format: "format",
};
// All fields, and the controls that they are chosen with.
const CONTROLS = {
  ...VALUES,
  model: "model",
  class_id: "search",
  class_name: "search",
  seed: "seed",
  decoding: "decodings",
  scales: "scales",
};

const HINTS = {
  images: "",
  cfg: "One image a scale, all from the same seed.",
  schedules: "One image a CFG schedule, all from the same seed.",
  decodings: "One image a decoding, all from the same seed.",
};

/** Set the form to what a model offers and does by default. */
export function offer(model) {
  element("decodings").replaceChildren(...model.decodings.map(segment));
  fill({ ...model.defaults });
  for (const field of document.querySelectorAll(".of-clusters")) field.hidden = !model.partitions.length;
  const compares = model.decodings.length > 1;
  element("compare-field").querySelector("[value=decodings]").disabled = !compares;
}

/** Set those controls that the settings name. */
export function fill(settings) {
  const set = (id, value) => {
    if (value !== undefined) element(id).value = value;
  };
  for (const [field, id] of Object.entries(VALUES)) set(id, settings[field]);
  // The two names of a step are one function.
  if (settings.cfg_schedule === "rectangular") set("cfg-schedule", "step");
  set("scales", settings.scales?.join(", "));
  if (settings.class_id !== undefined) choose(settings.class_id);
  if (settings.seed !== undefined) useSeed(settings.seed);
  check("decoding", settings.decoding);
  check("compare", settings.compare);
  showValues();
}

/** Keep a seed for the next run. */
export function useSeed(seed) {
  element("seed").value = seed;
  element("random").checked = false;
}

/** Settings as they were chosen; draws a seed where one is wanted. Throws a Problem. */
export function read(model) {
  const settings = {
    model: model.name,
    class_id: chosenClass(),
    cfg_scale: Number(element("cfg").value),
    cfg_schedule: element("cfg-schedule").value,
    num_images: Number(element("count").value),
    decoding: checked("decoding"),
    seed: 0,
    temperature: number("temperature", "Temperature"),
    top_k: integer("top-k", "Top-k", Number.MAX_SAFE_INTEGER),
    top_p: number("top-p", "Top-p"),
    format: element("format").value,
    compare: checked("compare"),
  };
  if (model.partitions.length) {
    settings.cluster_top_k = integer("cluster-top-k", "Clusters kept", Number.MAX_SAFE_INTEGER);
    settings.cluster_top_p = number("cluster-top-p", "Probability of clusters");
  }
  if (isCompleted()) {
    settings.code_temperature = number("code-temperature", "Code temperature");
    settings.code_top_k = integer("code-top-k", "Codes kept", Number.MAX_SAFE_INTEGER);
    settings.code_cfg_scale = number("code-cfg-scale", "CFG of codes");
  }
  if (settings.class_id === null) throw wrong("class_id", "Choose a class first.");
  if (settings.compare === "cfg") settings.scales = scales();
  if (settings.cfg_schedule === "step" || settings.compare === "schedules") settings.cfg_start = start();
  if (element("random").checked) {
    element("seed").value = Math.floor(Math.random() * DRAWN_BELOW);
  }
  settings.seed = integer("seed", "Seed", MAX_SEED);
  return settings;
}

/** Mark the fields at fault, and say what is wrong; nothing with no error. */
export function complain(error) {
  for (const marked of document.querySelectorAll("#form [aria-invalid]")) {
    marked.removeAttribute("aria-invalid");
  }
  tell(element("error"), error ? error.message : "");
  if (!error) return;
  const found = (error.fields ?? []).map(({ field }) => element(CONTROLS[field] ?? ""));
  const controls = found.filter(Boolean);
  controls.forEach((control) => control.setAttribute("aria-invalid", "true"));
  const first = controls[0];
  if (!first) return;
  if (element("more").contains(first)) element("more").open = true;
  (first.matches("input, select") ? first : first.querySelector("input"))?.focus();
}

function segment(name) {
  const radio = make("input", { type: "radio", name: "decoding", value: name });
  return make("label", {}, radio, make("span", {}, name));
}

const checked = (name) => document.querySelector(`#form [name=${name}]:checked`)?.value;

/** Whether a completer draws codes of what is chosen: its decoding alone has settings of codes. */
function isCompleted() {
  const completes = document.querySelector("#decodings [value=complete]");
  return Boolean(completes) && (completes.checked || checked("compare") === "decodings");
}

function check(name, value) {
  const radio = document.querySelector(`#form [name=${name}][value="${value ?? ""}"]`);
  if (radio) radio.checked = true;
}

function wrong(field, message) {
  return new Problem(message, { fields: [{ field, message }] });
}

function integer(id, name, high) {
  const text = element(id).value.trim();
  const field = id.replaceAll("-", "_");
  if (!/^\d+$/.test(text)) throw wrong(field, `${name} must be a whole number from 0.`);
  if (Number(text) > high) throw wrong(field, `${name} must be at most ${high}.`);
  return Number(text);
}

function number(id, name) {
  const value = Number(element(id).value.replace(",", "."));
  if (element(id).value.trim() === "" || !Number.isFinite(value)) {
    throw wrong(id.replaceAll("-", "_"), `${name} must be a number.`);
  }
  return value;
}

function start() {
  const value = number("cfg-start", "CFG start");
  if (value < 0 || value > 1) throw wrong("cfg_start", "CFG start must be from 0 to 1.");
  return value;
}

function scales() {
  const parts = element("scales").value.split(/[\s,;]+/).filter(Boolean);
  const found = [...new Set(parts.map(Number))];
  const fit = found.every((scale) => scale >= 1 && scale <= 20);
  if (!fit || found.length < 2 || found.length > MOST_COMPARED) {
    throw wrong("scales", `CFG scales: give two to ${MOST_COMPARED} numbers from 1 to 20.`);
  }
  return found;
}

function showValues() {
  const scale = Number(element("cfg").value);
  element("cfg-value").value = scale === 1 ? "1, off" : String(scale);
  element("count-value").value = element("count").value;
  const compare = checked("compare");
  element("cfg-field").hidden = compare === "cfg";
  element("scales-field").hidden = compare !== "cfg";
  element("schedule-field").hidden = compare === "schedules";
  element("start-field").hidden = compare !== "schedules" && element("cfg-schedule").value !== "step";
  element("count-field").hidden = compare !== "images";
  element("decoding-field").hidden = compare === "decodings";
  for (const field of document.querySelectorAll(".of-codes")) field.hidden = !isCompleted();
  tell(element("compare-hint"), HINTS[compare] ?? "");
}

element("form").addEventListener("input", showValues);
element("seed").addEventListener("input", () => {
  element("random").checked = element("seed").value === "";
});
