// The status view: who works, what waits, how fast it goes. It looks only while it is seen.

import { spark } from "./chart.js";
import { count, duration, element, make, tell } from "./dom.js";
import { parse, quantile, since, sum } from "./metrics.js";
import { ask, askText } from "./service.js";

const SECONDS = 2; // between two looks
const WINDOW = 31; // looks that are kept: a minute
const REQUESTS = "masc_request_duration_seconds";
const GENERATE = { endpoint: "/generate" };
const STAGES = {
  queue: "waiting",
  prefill: "first step",
  decode: "predicting",
  cluster_to_code: "cluster to code",
  vq_decode: "drawing",
  encode: "encoding",
  deliver: "delivering",
};

let looks = [];
let timer = 0;

export function openStatus() {
  clearInterval(timer);
  timer = setInterval(() => document.hidden || look(), SECONDS * 1000);
  return look();
}

export function closeStatus() {
  clearInterval(timer);
}

async function look() {
  try {
    const [status, text, { models }] = await Promise.all([
      ask("/status"),
      askText("/metrics"),
      ask("/models"),
    ]);
    tell(element("status-error"), "");
    looks.push({ at: Date.now() / 1000, status, samples: parse(text) });
    looks = looks.slice(-WINDOW);
    show(status, models);
  } catch (error) {
    tell(element("status-error"), error.message);
  }
}

function show(status, models) {
  const now = looks.at(-1);
  const requests = since(base(), now.samples, REQUESTS, GENERATE);
  const { queue } = status;
  const ready = status.workers.filter((worker) => worker.ready).length;
  const state = status.draining ? "about to stop" : ready ? "ready" : "no worker is ready";
  element("tiles").replaceChildren(
    tile("Service", state, `version ${status.version}`),
    tile("Workers ready", String(ready), `of ${status.workers.length} announced`),
    queue
      ? tile("Waiting jobs", String(queue.depth), oldest(queue), history((l) => l.status.queue?.depth ?? 0))
      : tile("Queue", "away", "it cannot be reached"),
    tile("Running jobs", queue ? String(queue.running) : "–", "claimed by workers"),
    tile("Jobs ended", rate(), `${ended(queue)} since the queue began`, speeds()),
    tile("Latency, median", seconds(quantile(requests, 0.5)), `p95 ${seconds(quantile(requests, 0.95))}`),
  );
  element("latency-hint").textContent = requests.count
    ? `Means of ${count(requests.count, "request")} to /generate ${period()}.`
    : "No request to /generate yet.";
  showStages(now.samples);
  showWorkers(status.workers);
  showModels(models, status.default_model);
}

/** The look from which figures are counted: a minute ago, or the beginning if nothing came since. */
function base() {
  const [one, other] = [looks[0], looks.at(-1)];
  const asked = sum(other.samples, `${REQUESTS}_count`, GENERATE) - sum(one.samples, `${REQUESTS}_count`, GENERATE);
  return asked ? one.samples : [];
}

function period() {
  if (!base().length) return "since this server began";
  return `of the last ${Math.max(1, Math.round(looks.at(-1).at - looks[0].at))} s`;
}

const oldest = ({ depth, oldest_seconds: age }) => (depth ? `the oldest for ${duration(age)}` : "nothing waits");

const ended = (queue) =>
  queue ? Object.values(queue.ended).reduce((all, n) => all + n, 0).toLocaleString("en") : "–";

const jobs = ({ status }) => Object.values(status.queue?.ended ?? {}).reduce((all, n) => all + n, 0);

function rate() {
  if (looks.length < 2) return "–";
  const [one, other] = [looks[0], looks.at(-1)];
  return `${((jobs(other) - jobs(one)) / (other.at - one.at)).toFixed(1)} / s`;
}

function speeds() {
  return history((now, before) => (before ? (jobs(now) - jobs(before)) / (now.at - before.at) : 0));
}

function history(of) {
  return looks.length < 3 ? null : spark(looks.map((now, i) => of(now, looks[i - 1])), WINDOW);
}

const seconds = (value) => (value === null ? "–" : duration(value));

function tile(label, value, more, drawing = null) {
  const parts = [make("h2", {}, label), make("p", { className: "big" }, value), make("p", {}, more)];
  return make("section", { className: "tile", ariaLabel: label }, ...parts, ...(drawing ? [drawing] : []));
}

function showStages(samples) {
  const rows = Object.entries(STAGES).map(([stage, label]) => {
    const name = "masc_stage_duration_seconds";
    const { count: times, seconds: all } = since(base(), samples, name, { stage });
    return [label, times ? all / times : null];
  });
  const most = Math.max(...rows.map(([, mean]) => mean ?? 0), 1e-9);
  element("stages").replaceChildren(
    ...rows.map(([label, mean]) => {
      const bar = make("i", { className: "meter" });
      bar.style.width = `${(100 * (mean ?? 0)) / most}%`;
      return row([label, seconds(mean), bar]);
    }),
  );
  const images = sum(samples, "masc_images_total");
  const bits = since([], samples, "masc_prediction_entropy_bits");
  if (!images) return; // workers of other processes count for themselves
  element("latency-hint").append(
    ` ${count(images, "image")} in all, ${(bits.seconds / bits.count).toFixed(2)} bits a position.`,
  );
}

function showWorkers(workers) {
  const rows = workers.map(({ id, ready, model, version, detail }) =>
    row([id, ready ? "ready" : "not ready", detail || `${model} ${version}`.trim()]),
  );
  element("workers").replaceChildren(
    head("worker", "state", "serves"),
    ...(rows.length ? rows : [row(["No worker has announced itself.", "", ""])]),
  );
}

function showModels(models, byDefault) {
  element("served").replaceChildren(
    head("model", "version", "weights"),
    ...models.map(({ name, version, weights_sha256: weights }) =>
      row([name + (name === byDefault ? " (default)" : ""), version, weights.slice(0, 12)]),
    ),
  );
}

function head(...cells) {
  return make("tr", {}, ...cells.map((text) => make("th", { scope: "col" }, text)));
}

function row(cells) {
  return make("tr", {}, ...cells.map((content) => make("td", {}, content)));
}

document.documentElement.addEventListener("theme", () => {
  if (!element("view-status").hidden) look();
});
