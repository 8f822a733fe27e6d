// The status view: who works, what waits, how fast it goes. It looks only while it is seen.

import { spark } from "./chart.js";
import { count, duration, element, make, tell } from "./dom.js";
import { beganAnew, parse, quantile, since, sum } from "./metrics.js";
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
  complete: "completing",
  vq_decode: "drawing",
  encode: "encoding",
  deliver: "delivering",
};

let looks = [];
let timer = 0;
let looking = null;

export function openStatus() {
  clearInterval(timer);
  timer = setInterval(() => document.hidden || look(), SECONDS * 1000);
  return look();
}

export function closeStatus() {
  clearInterval(timer);
}

/** Look again, unless the look before is not answered yet. */
function look() {
  looking ??= lookOnce().finally(() => {
    looking = null;
  });
  return looking;
}

async function lookOnce() {
  try {
    const [status, text, models] = await Promise.all([
      ask("status"),
      askText("metrics").catch(reasonOf),
      ask("models").catch(reasonOf),
    ]);
    tell(element("status-error"), "");
    const samples = text instanceof Error ? null : parse(text);
    keep({ at: Date.now() / 1000, status, samples });
    showTiles(status);
    if (samples) showStages(samples);
    else showNoStages(text);
    showWorkers(status);
    showModels(models, status.default_model);
  } catch (error) {
    tell(element("status-error"), error.message);
  }
}

const reasonOf = (error) => error; // the part of the view that it concerns says it

/** Keep a look; those before go where it cannot be compared with them. */
function keep(now) {
  const last = looks.at(-1);
  if (last && !isAfter(now, last)) looks = [];
  looks = [...looks, now].slice(-WINDOW);
}

/** Whether the same was counted at both looks, and has only grown. */
function isAfter(now, last) {
  const isSameKind =
    Boolean(now.status.queue) === Boolean(last.status.queue) &&
    Boolean(now.samples) === Boolean(last.samples);
  return isSameKind && jobs(now) >= jobs(last) && !beganAnew(last.samples ?? [], now.samples ?? []);
}

function showTiles(status) {
  const { queue } = status;
  const ready = processes(status.workers.filter((worker) => worker.ready));
  const state = status.draining ? "about to stop" : ready ? "ready" : "no worker is ready";
  element("tiles").replaceChildren(
    tile("Service", state, `version ${status.version}`),
    tile("Workers ready", String(ready), `of ${processes(status.workers)} announced`),
    queue
      ? tile("Waiting jobs", String(queue.depth), oldest(queue), history((l) => l.status.queue?.depth ?? 0))
      : tile("Queue", "away", "it cannot be reached"),
    tile("Running jobs", queue ? String(queue.running) : "–", "claimed by workers"),
    tile("Jobs ended", rate(), `${ended(queue)} since the queue began`, speeds()),
    latency(),
  );
}

/** How many workers these are: one that serves several models is there once for each. */
const processes = (workers) => new Set(workers.map(({ id }) => id.split("/")[0])).size;

function latency() {
  const { samples } = looks.at(-1);
  if (!samples) return tile("Latency, median", "–", "the metrics cannot be read");
  const requests = since(base(), samples, REQUESTS, GENERATE);
  const [half, most] = [0.5, 0.95].map((share) => seconds(quantile(requests, share)));
  return tile("Latency, median", half, `p95 ${most}`);
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
  if (looks.length < 2 || !looks.at(-1).status.queue) return "–";
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
  const requests = since(base(), samples, REQUESTS, GENERATE);
  const images = sum(samples, "masc_images_total");
  const bits = since([], samples, "masc_prediction_entropy_bits");
  const means = requests.count
    ? `Means of ${count(requests.count, "request")} to /generate ${period()}.`
    : "No request to /generate yet.";
  // Workers of other processes count for themselves.
  const made = `${count(images, "image")} in all, ${(bits.seconds / bits.count).toFixed(2)} bits a position.`;
  element("latency-hint").textContent = images ? `${means} ${made}` : means;
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
}

function showNoStages(error) {
  element("latency-hint").textContent = `The metrics cannot be read: ${error.message}`;
  element("stages").replaceChildren();
}

function showWorkers({ workers, queue }) {
  const none = queue ? "No worker has announced itself." : "Workers are known by the queue.";
  const rows = workers.map(({ id, ready, model, version, detail }) =>
    row([id, ready ? "ready" : "not ready", detail || `${model} ${version}`.trim()]),
  );
  element("workers").replaceChildren(
    head("worker", "state", "serves"),
    ...(rows.length ? rows : [row([none, "", ""])]),
  );
}

function showModels(answer, byDefault) {
  const isThere = !(answer instanceof Error);
  element("served").replaceChildren(
    head("model", "version", "weights"),
    ...(isThere ? [] : [row([`The models are not known: ${answer.message}`, "", ""])]),
    ...(isThere ? answer.models : []).map(({ name, version, weights_sha256: weights }) =>
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
