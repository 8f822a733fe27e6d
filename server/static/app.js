// The page: asks the service what there is, sends what was chosen, shows what comes back.

const MAX_SEED = Number.MAX_SAFE_INTEGER - 16; // so that the seed of every image is exact
const MAX_RESULTS = 20;
const READY_INTERVAL = 2000;
const STAGES = {
  queue: "waiting",
  prefill: "first step",
  decode: "predicting",
  vq_decode: "drawing",
  encode: "encoding",
  total: "in all",
};

const element = (id) => document.getElementById(id);
const page = {
  form: element("form"),
  controls: element("controls"),
  model: element("model"),
  search: element("search"),
  classes: element("class"),
  classCount: element("class-count"),
  cfg: element("cfg"),
  cfgValue: element("cfg-value"),
  count: element("count"),
  decoding: element("decoding"),
  seed: element("seed"),
  random: element("random"),
  key: element("key"),
  generate: element("generate"),
  cancel: element("cancel"),
  status: element("status"),
  error: element("error"),
  results: element("results"),
};

let models = [];
let classes = [];
let running = null; // AbortController of the request under way

// Talking to the service

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => null);
  if (response.status === 401) element("key-field").hidden = false;
  if (!response.ok) throw new Error(explain(response, answer));
  return answer;
}

function explain(response, problem) {
  if (!problem?.title) return `The service answered ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  const advice = wait ? ` Try again in ${wait} s.` : "";
  return `${problem.title}: ${problem.detail}.${advice}`;
}

function credentials() {
  const key = page.key.value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// Filling the form

function option(text, value) {
  return new Option(text, value);
}

function currentModel() {
  return models.find((model) => model.name === page.model.value);
}

// Offers the models that are ready, or all of them while none is.
async function offerModels() {
  const { models: found } = await ask("/models");
  const before = currentModel();
  const ready = found.filter((model) => model.ready);
  models = ready.length ? ready : found;
  const chosen =
    models.find((model) => model.name === before?.name) ??
    models.find((model) => model.default) ??
    models[0];
  if (!chosen) throw new Error("There is no model that can be served.");
  page.model.replaceChildren(...models.map((model) => option(model.name, model.name)));
  page.model.value = chosen.name;
  element("model-field").hidden = models.length < 2;
  // What a person has chosen meanwhile stays, unless it is for another model.
  if (chosen.name !== before?.name || chosen.version !== before.version) await showModel();
}

async function showModel() {
  const model = currentModel();
  element("model-line").textContent =
    `${model.name} ${model.version}: ${model.num_classes} classes, ` +
    `${model.image_size}×${model.image_size} pixels, ${model.num_clusters} clusters ` +
    `of ${model.num_codes} codes`;
  page.decoding.replaceChildren(...model.decodings.map((name) => option(name, name)));
  page.decoding.value = model.defaults.decoding;
  page.cfg.value = model.defaults.cfg_scale;
  showCfg();
  const answer = await ask(`/models/${encodeURIComponent(model.name)}/classes`);
  classes = answer.classes;
  showClasses();
}

function showClasses() {
  const wanted = page.search.value.trim().toLowerCase();
  const chosen = page.classes.value;
  const found = classes.filter(
    ({ id, name }) => name.toLowerCase().includes(wanted) || String(id) === wanted,
  );
  page.classes.replaceChildren(...found.map(({ id, name }) => option(name, id)));
  page.classes.value = chosen;
  if (page.classes.selectedIndex < 0 && found.length) page.classes.selectedIndex = 0;
  page.classCount.textContent = countOf(found.length, classes.length);
}

function countOf(found, all) {
  if (found === 0) return "No class is called so.";
  return found === all ? `${all} classes` : `${found} of ${all} classes`;
}

function showCfg() {
  const scale = Number(page.cfg.value);
  page.cfgValue.value = scale === 1 ? "1 (off)" : String(scale);
}

// Reading the form

function integer(text, low, high, name) {
  const value = Number(text);
  if (!/^\d+$/.test(text.trim()) || value < low || value > high) {
    throw new Error(`${name} must be a whole number from ${low} to ${high}.`);
  }
  return value;
}

function readForm() {
  if (!page.classes.value) throw new Error("Choose a class first.");
  const body = {
    model: currentModel().name,
    class_id: Number(page.classes.value),
    cfg_scale: Number(page.cfg.value),
    num_images: integer(page.count.value, 1, 16, "Images"),
    decoding: page.decoding.value,
  };
  if (!page.random.checked) body.seed = integer(page.seed.value, 0, MAX_SEED, "Seed");
  return body;
}

// Showing what is going on

function say(text) {
  page.status.textContent = text;
}

function complain(text) {
  page.error.textContent = text;
  page.error.hidden = !text;
}

function setRunning(controller) {
  running = controller;
  page.controls.disabled = Boolean(controller);
  page.generate.disabled = Boolean(controller);
  page.cancel.hidden = !controller;
  page.results.setAttribute("aria-busy", String(Boolean(controller)));
}

// Showing images

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function openResult(body, name) {
  const parts = [name];
  if (body.cfg_scale !== 1) parts.push(`CFG ${body.cfg_scale}`);
  parts.push(body.decoding);
  const placeholders = Array.from({ length: body.num_images }, () =>
    make("div", { className: "placeholder" }),
  );
  const result = make(
    "section",
    { className: "result" },
    make("h2", { textContent: parts.join(" · ") }),
    make("div", { className: "images" }, ...placeholders),
  );
  element("empty").hidden = true;
  page.results.prepend(result);
  result.scrollIntoView({ block: "nearest" });
  for (const old of [...page.results.querySelectorAll(".result")].slice(MAX_RESULTS)) old.remove();
  return result;
}

function dropResult(result) {
  result.remove();
  element("empty").hidden = Boolean(page.results.querySelector(".result"));
}

function fillResult(result, answer, name) {
  const figures = answer.images.map((image) => figure(image, name, answer.model));
  result.querySelector(".images").replaceChildren(...figures);
  result.append(timings(answer.timings));
  element("legend").hidden = false;
}

function figure(image, name, model) {
  const source = `data:image/${image.format};base64,${image.b64}`;
  const file = `${name}-${image.seed}.${image.format}`.replaceAll(/[^\w.-]+/g, "-");
  const again = make("button", {
    type: "button",
    className: "quiet small",
    textContent: "Use seed",
    ariaLabel: `Use seed ${image.seed}`,
  });
  again.addEventListener("click", () => useSeed(image.seed));
  const save = make("a", { href: source, download: file, textContent: "Save" });
  save.ariaLabel = `Save the image of seed ${image.seed}`;
  const alt = `${name}, generated by ${model.name} ${model.version}, seed ${image.seed}`;
  return make(
    "figure",
    {},
    make("img", { src: source, alt }),
    make(
      "figcaption",
      {},
      make("div", { textContent: `Seed ${image.seed}` }),
      make("div", { textContent: entropy(image) }),
      make("div", { className: "links" }, again, save),
    ),
  );
}

function entropy(image) {
  const share = Math.round(image.entropy_ratio * 100);
  return `Entropy ${image.entropy_bits.toFixed(2)} bits (${share}\u00a0%)`;
}

function timings(seconds) {
  const rows = Object.entries(STAGES).map(([stage, label]) =>
    make(
      "div",
      {},
      make("dt", { textContent: label }),
      make("dd", { textContent: duration(seconds[stage]) }),
    ),
  );
  return make("dl", { className: "timings" }, ...rows);
}

function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
}

function useSeed(seed) {
  page.seed.value = seed;
  page.random.checked = false;
  page.seed.focus();
}

// What a person does

async function generate(event) {
  event.preventDefault();
  if (running) return;
  complain("");
  let body;
  try {
    body = readForm();
  } catch (error) {
    say("");
    complain(error.message);
    return;
  }
  const name = classes[body.class_id].name;
  const result = openResult(body, name);
  const controller = new AbortController();
  const focused = document.activeElement;
  setRunning(controller);
  say(`Generating ${images(body.num_images)} of ${name}…`);
  try {
    const answer = await ask("/generate", {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        Accept: "application/json",
        ...credentials(),
      },
      body: JSON.stringify(body),
      signal: controller.signal,
    });
    fillResult(result, answer, name);
    if (page.random.checked) page.seed.value = answer.images[0].seed;
    say(`${images(answer.images.length)} in ${duration(answer.timings.total)}.`);
  } catch (error) {
    dropResult(result);
    say(error.name === "AbortError" ? "Cancelled." : "");
    if (error.name !== "AbortError") complain(error.message);
  } finally {
    setRunning(null);
    focused?.focus({ preventScroll: true });
  }
}

function images(count) {
  return count === 1 ? "1 image" : `${count} images`;
}

function listen() {
  page.form.addEventListener("submit", generate);
  page.cancel.addEventListener("click", () => running?.abort());
  page.model.addEventListener("change", () => showModel().catch((e) => complain(e.message)));
  page.search.addEventListener("input", showClasses);
  page.search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") {
      event.preventDefault();
      page.classes.focus();
    }
  });
  page.classes.addEventListener("keydown", (event) => {
    if (event.key === "Enter") page.form.requestSubmit();
  });
  page.cfg.addEventListener("input", showCfg);
  page.seed.addEventListener("input", () => {
    page.random.checked = page.seed.value === "";
  });
}

// Start

async function waitUntilReady() {
  while (!models.some((model) => model.ready)) {
    try {
      await ask("/readyz");
      await offerModels();
      if (models.some((model) => model.ready)) break;
    } catch (error) {
      say(`Not ready yet. ${error.message}`);
    }
    await new Promise((wake) => setTimeout(wake, READY_INTERVAL));
  }
  say("Ready.");
}

async function start() {
  listen();
  const [version] = await Promise.all([ask("/version"), offerModels()]);
  element("version").textContent = `${version.name} ${version.version}`;
  page.controls.disabled = false;
  await waitUntilReady();
  setRunning(null);
}

start().catch((error) => {
  say("");
  complain(error.message);
});
