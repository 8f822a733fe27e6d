// The page: asks the service what there is, sends what was chosen, shows what comes back.

import { className, hasClass, showClasses } from "./classes.js";
import { openCodebook, recolourCodebook } from "./codebook.js";
import { count, duration, element, turns, write } from "./dom.js";
import { complain, fill, offer, read } from "./form.js";
import { openHistory, remember } from "./history.js";
import { Result } from "./result.js";
import { execute, plan } from "./run.js";
import { ask, configure, lookNow, watch } from "./service.js";
import { closeStatus, openStatus } from "./status.js";

const VIEWS = ["generate", "codebook", "status"];

let models = [];
let model = null; // the one that the form is for
let wanted = null; // the one that was asked for; another than the model until its classes are there
let running = null; // AbortController of the run under way
let isServed = false; // images can be made
let notServed = "It is not known yet whether the service is ready."; // or why it is not
const beginOffer = turns();
let served = ""; // by whom, when the models were last asked for

// Models

/** Offer the models that are ready, or all of them while none is. */
async function offerModels() {
  const isLast = beginOffer();
  const { models: found } = await ask("models");
  if (!isLast()) return;
  const ready = found.filter((one) => one.ready);
  models = ready.length ? ready : found;
  const chosen =
    models.find(({ name }) => name === wanted?.name) ?? models.find((one) => one.default) ?? models[0];
  if (!chosen) throw new Error("There is no model that can be served.");
  element("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  element("model").value = chosen.name;
  element("model-field").hidden = models.length < 2;
  // What a person has chosen meanwhile stays, unless it is for another model.
  const isSame = chosen.name === wanted?.name && chosen.version === wanted.version;
  if (!isSame) await showModel(chosen);
}

/** Set the page to a model; what was asked for last counts, and after an error what was there. */
async function showModel(chosen) {
  wanted = chosen;
  element("model").value = chosen.name;
  allow();
  try {
    const { classes } = await ask(`models/${encodeURIComponent(chosen.name)}/classes`);
    if (wanted === chosen) await use(chosen, classes);
  } catch (error) {
    if (wanted !== chosen) return;
    wanted = model;
    element("model").value = model?.name ?? "";
    throw error;
  } finally {
    allow();
  }
}

async function use(chosen, classes) {
  model = chosen;
  offer(model);
  showClasses(model, classes);
  const side = model.image_size;
  element("model-line").textContent =
    `${model.name} ${model.version}, ${side}×${side} pixels, ${model.num_positions} positions`;
  element("num-clusters").textContent = model.num_clusters.toLocaleString("en");
  element("num-codes").textContent = model.num_codes.toLocaleString("en");
  if (view() === "codebook") await openCodebook(model);
}

// A run

async function submit(event) {
  event.preventDefault();
  if (running || !canGenerate()) return;
  complain(null);
  let settings;
  try {
    settings = read(model);
  } catch (error) {
    complain(error);
    return;
  }
  const controller = new AbortController();
  setRunning(controller);
  const name = className(settings.class_id);
  const run = plan(settings, name, model.decodings);
  const result = new Result(run, name, model, () => makeAgain(settings));
  say(`Drawing ${count(run.cells.length, "image")} of ${name}…`);
  const started = performance.now();
  try {
    const { done, error } = await execute(run.requests, controller.signal, (request, what, data) => {
      if (what === "queued") say(waits(data));
      else if (what === "started") say(`Drawing ${count(run.cells.length, "image")} of ${name}…`);
      result.hear(request, what, data);
    });
    const made = done.some(Boolean);
    if (made) result.finish(done);
    else result.drop();
    const images = made ? count(result.frames.length, "image") : "";
    if (error) failed(error, images);
    else say(`${images} in ${duration((performance.now() - started) / 1000)}.`);
    if (made) await remember(settings, run.title, result.frames[0].image);
    if (done.some((one) => one && isOther(one.model))) await offerModels();
  } catch (error) {
    complain(error); // whatever it is, the images stay
  } finally {
    setRunning(null);
  }
}

/** Whether that is the form's model in a version that it does not know. */
const isOther = ({ name, version }) => name === model.name && version !== model.version;

/** Say why a run ended early, and which images there are all the same. */
function failed(error, images) {
  const isCancelled = error.name === "AbortError";
  const kept = images && `${images} had been made.`;
  say(isCancelled ? `Cancelled. ${kept}`.trim() : kept);
  if (isCancelled) return;
  complain(error);
  if (error.status === 401 || error.status === 403) {
    element("key-field").hidden = false;
    element("key").focus();
  }
}

function waits({ position, estimated_start_seconds: seconds }) {
  const ahead = position ? `${count(position, "job")} ahead` : "next in line";
  return seconds === null ? `Waiting, ${ahead}…` : `Waiting, ${ahead}, about ${duration(seconds)}…`;
}

function makeAgain(settings) {
  location.hash = "generate";
  const again = async () => {
    if (running) throw new Error("A run is under way. Wait for it, or cancel it.");
    if (!canGenerate()) throw new Error(isServed ? "The model is not there yet." : notServed);
    const found = models.find(({ name }) => name === settings.model);
    if (!found) throw new Error(`The model ${settings.model} is not served any more.`);
    if (found.name !== model.name) await showModel(found);
    if (found.name !== model.name) return; // another was chosen meanwhile
    const missing = missingOf(settings);
    if (missing) throw new Error(`${model.name} ${model.version} has no ${missing} any more.`);
    fill({ ...model.defaults, ...settings }); // what it does not name is not what the form holds
    element("form").requestSubmit();
  };
  again().catch(complain);
}

/** What of the settings the model does not offer in its present version; empty if nothing. */
function missingOf({ class_id: id, decoding, compare, cluster_top_k: kept, cluster_top_p: share }) {
  if (!hasClass(id)) return `class ${id}`;
  if ((kept > 0 || share < 1) && !model.partitions.length) return "partition";
  if (compare === "decodings") return model.decodings.length > 1 ? "" : "decodings to compare";
  return model.decodings.includes(decoding) ? "" : `decoding ${decoding}`;
}

function setRunning(controller) {
  running = controller;
  const had = element("form").contains(document.activeElement);
  element("draw").hidden = Boolean(controller);
  element("cancel").hidden = !controller;
  if (had && document.activeElement === document.body) {
    element(controller ? "cancel" : "draw").focus({ preventScroll: true });
  }
}

const say = (text) => write(element("progress"), text);

const canGenerate = () => isServed && model !== null && model === wanted;

function allow() {
  element("draw").disabled = !canGenerate();
}

// The state of the service

/** The state, in words, and of which workers in which versions a ready service is told. */
function showState(state, text, by = "") {
  const label = element("state");
  label.dataset.state = state;
  write(label, state === "ready" ? "Ready" : state === "offline" ? "Unreachable" : "Not ready");
  label.title = text;
  const isNew = state === "ready" && (!isServed || !model || by !== served);
  isServed = state === "ready";
  allow();
  if (!isServed) notServed = text;
  if (!isServed && !running) say(text);
  if (isNew && !running) {
    offerModels()
      .then(() => {
        served = by;
        if (!running) say("Ready.");
      })
      .catch((error) => say(error.message));
  }
}

/** An answer was of another version than the page's. */
function renew() {
  offerModels().catch((error) => say(error.message));
}

// Views

const view = () => VIEWS.find((name) => location.hash.slice(1).split("/")[0] === name) ?? "generate";

async function showView() {
  const shown = view();
  for (const name of VIEWS) {
    element(`view-${name}`).hidden = name !== shown;
    if (name === shown) element(`tab-${name}`).setAttribute("aria-current", "page");
    else element(`tab-${name}`).removeAttribute("aria-current");
  }
  document.title = shown === "generate" ? "MASC" : `MASC, ${shown}`;
  if (shown === "status") await openStatus();
  else closeStatus();
  const node = /^#codebook\/(\d+)$/.exec(location.hash)?.[1];
  if (shown === "codebook" && model) await openCodebook(model, node);
}

// Start

function listen() {
  element("form").addEventListener("submit", submit);
  element("cancel").addEventListener("click", () => running?.abort());
  element("model").addEventListener("change", () => {
    const chosen = models.find(({ name }) => name === element("model").value);
    showModel(chosen).catch(complain);
    lookNow();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the part of the address after # names the view
    element("main").focus();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !takesEscape(event.target)) running?.abort();
    const isAsked = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (isAsked && view() === "generate") element("form").requestSubmit();
  });
  addEventListener("hashchange", showView);
  document.documentElement.addEventListener("theme", recolourCodebook);
}

/** Whether Escape means something of its own there: to empty a search, or to close what is open. */
function takesEscape(node) {
  const isSearched = node.matches("input[type=search]") && node.value !== "";
  return isSearched || node.matches("select") || document.querySelector("dialog[open]") !== null;
}

async function start() {
  const other = () => (wanted && !wanted.default ? wanted.name : "");
  configure({ key: () => element("key").value.trim(), model: other, report: showState, renew });
  listen();
  openHistory(makeAgain);
  const shown = showView();
  const version = ask("version").then((answer) => {
    element("version").textContent = `${answer.name} ${answer.version}`;
  });
  await offerModels();
  await Promise.all([shown, version]);
  if (view() === "codebook") await showView();
}

start()
  .catch((error) => say(error.message))
  .finally(watch);
