// The page: asks the service what there is, sends what was chosen, shows what comes back.

import { className, showClasses } from "./classes.js";
import { openCodebook, recolourCodebook } from "./codebook.js";
import { count, duration, element } from "./dom.js";
import { complain, fill, offer, read } from "./form.js";
import { openHistory, remember } from "./history.js";
import { Result } from "./result.js";
import { execute, plan } from "./run.js";
import { ask, configure, watch } from "./service.js";
import { closeStatus, openStatus } from "./status.js";

const VIEWS = ["generate", "codebook", "status"];

let models = [];
let model = null; // the chosen one
let running = null; // AbortController of the run under way
let isReady = false;

// Models

/** Offer the models that are ready, or all of them while none is. */
async function offerModels() {
  const { models: found } = await ask("/models");
  const ready = found.filter((one) => one.ready);
  models = ready.length ? ready : found;
  const chosen =
    models.find(({ name }) => name === model?.name) ?? models.find((one) => one.default) ?? models[0];
  if (!chosen) throw new Error("There is no model that can be served.");
  element("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  element("model").value = chosen.name;
  element("model-field").hidden = models.length < 2;
  // What a person has chosen meanwhile stays, unless it is for another model.
  const isSame = chosen.name === model?.name && chosen.version === model.version;
  if (!isSame) await showModel(chosen);
}

async function showModel(chosen) {
  const { classes } = await ask(`/models/${encodeURIComponent(chosen.name)}/classes`);
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
  if (running || !isReady) return;
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
  const result = new Result(run, name, model.image_size, () => makeAgain(settings));
  say(`Drawing ${count(run.cells.length, "image")} of ${name}…`);
  const started = performance.now();
  try {
    const done = await execute(run.requests, controller, (request, what, data) => {
      if (what === "queued") say(waits(data));
      else if (what === "started") say(`Drawing ${count(run.cells.length, "image")} of ${name}…`);
      result.hear(request, what, data);
    });
    result.finish(done);
    say(`${count(run.cells.length, "image")} in ${duration((performance.now() - started) / 1000)}.`);
    await remember(settings, run.title, result.frames[0].image);
  } catch (error) {
    result.drop();
    failed(error);
  } finally {
    setRunning(null);
  }
}

function failed(error) {
  const isCancelled = error.name === "AbortError";
  say(isCancelled ? "Cancelled." : "");
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
  if (running) return;
  location.hash = "generate";
  if (!models.some(({ name }) => name === settings.model)) {
    complain(new Error(`The model ${settings.model} is not served any more.`));
    return;
  }
  const again = async () => {
    const wanted = models.find(({ name }) => name === settings.model);
    if (wanted.name !== model.name) {
      element("model").value = wanted.name;
      await showModel(wanted);
    }
    fill(settings);
    element("form").requestSubmit();
  };
  again().catch(complain);
}

function setRunning(controller) {
  running = controller;
  const had = element("form").contains(document.activeElement);
  element("generate").hidden = Boolean(controller);
  element("cancel").hidden = !controller;
  if (had && document.activeElement === document.body) {
    element(controller ? "cancel" : "generate").focus({ preventScroll: true });
  }
}

function say(text) {
  element("progress").textContent = text;
}

// The state of the service

function showState(state, text) {
  const label = element("state");
  label.dataset.state = state;
  label.textContent = state === "ready" ? "Ready" : state === "offline" ? "Unreachable" : "Not ready";
  label.title = text;
  isReady = state === "ready" && model !== null;
  element("generate").disabled = !isReady;
  if (state !== "ready" && !running) say(text);
  if (state === "ready" && !running && (!wasReady || !model)) {
    offerModels()
      .then(() => {
        isReady = true;
        element("generate").disabled = false;
        say("Ready.");
      })
      .catch((error) => say(error.message));
  }
  wasReady = state === "ready";
}

let wasReady = false;

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
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    const isAsked = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (isAsked && view() === "generate") element("form").requestSubmit();
  });
  addEventListener("hashchange", showView);
  document.documentElement.addEventListener("theme", recolourCodebook);
}

async function start() {
  configure({ key: () => element("key").value.trim(), report: showState });
  listen();
  openHistory(makeAgain);
  const shown = showView();
  const version = ask("/version").then((answer) => {
    element("version").textContent = `${answer.name} ${answer.version}`;
  });
  await offerModels();
  await Promise.all([shown, version]);
  if (view() === "codebook") await showView();
}

start()
  .catch((error) => say(error.message))
  .finally(watch);
