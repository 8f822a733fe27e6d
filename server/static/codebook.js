// The codebook view: pages of clusters, and the branch that was chosen among them.

import { showBranch } from "./branch.js";
import { count, element, make, tell, turns, write } from "./dom.js";
import { Patches } from "./patches.js";
import { ask } from "./service.js";

const PAGE = 60; // clusters
const SHOWN = 12; // codes of one

const find = element("find");

let book = null; // of the model that is shown
let wanted = null; // the model whose book was asked for last
let offset = 0;
let total = 0;
const beginPage = turns();
const beginChoice = turns();

/** Show the codebook of a model, and a node of its tree if one is given. */
export async function openCodebook(model, node) {
  try {
    if (book?.model !== model.name || book?.version !== model.version) await load(model);
    if (wanted === model) await go(node ?? book.root, { quietly: true });
  } catch (error) {
    if (wanted === model) failed(error);
  }
}

/** Draw again what depends on colours. */
export function recolourCodebook() {
  if (book) redraw();
}

let redraw = () => {};
let chosen; // number of the cluster that is shown

/** Mark its card, if it is on this page. */
function mark() {
  for (const card of element("clusters").querySelectorAll("button")) {
    card.setAttribute("aria-pressed", String(Number(card.dataset.cluster) === chosen));
  }
}

async function load(model) {
  book = null;
  wanted = model;
  const base = `models/${encodeURIComponent(model.name)}/codebook`;
  element("codebook-body").hidden = true;
  if (!model.has_codebook) {
    throw new Error(
      `${model.name} ${model.version} was published without pictures of its codebook. ` +
        "Every version that masc models publish writes has them.",
    );
  }
  tell(element("codebook-facts"), "Loading…");
  tell(element("codebook-error"), "");
  tell(element("find-error"), "");
  const version = `v=${encodeURIComponent(model.version)}`; // all are of one version, or refused
  const summary = await ask(`${base}?${version}`);
  const patches = await Patches.load(`${base}/patches?${version}`, summary.patches);
  if (wanted !== model) return;
  book = { ...summary, patches, go, ask: (path) => ask(`${base}/${path}${version}`) };
  tell(element("codebook-facts"), facts(summary));
  element("codebook-body").hidden = false;
  await turn(0);
}

function facts(summary) {
  const { num_codes: codes, num_clusters: clusters, num_branches: branches, sizes } = summary;
  const height = summary.cut_height;
  const singles = sizes.find(({ size }) => size === 1)?.clusters ?? 0;
  const largest = sizes.at(-1).size;
  const cut =
    height === null
      ? ` ${branches.toLocaleString("en")} of the clusters are branches of the tree.`
      : ` Merges up to a height of ${height.toFixed(3)} were kept.`;
  return (
    `${count(codes, "code")} in ${count(clusters, "cluster")}: ${singles.toLocaleString("en")} of ` +
    `one code, the largest of ${largest.toLocaleString("en")}. A square is what a code looks like ` +
    `on average among random neighbours.${cut}`
  );
}

async function turn(to) {
  const query = new URLSearchParams({
    sort: element("sort").value,
    least: element("least").value,
    offset: String(to),
    limit: String(PAGE),
  });
  const asked = book;
  const isLast = beginPage();
  const page = await asked.ask(`clusters?${query}&`);
  if (book !== asked || !isLast()) return;
  ({ offset, total } = page);
  element("clusters").replaceChildren(...page.clusters.map((cluster) => make("li", {}, card(cluster))));
  mark();
  const last = Math.min(offset + PAGE, total);
  const line = `${(offset + 1).toLocaleString("en")} to ${last.toLocaleString("en")}`;
  const shown = total ? `${line} of ${count(total, "cluster")}` : "No cluster is that large.";
  write(element("page-line"), shown);
  element("earlier").disabled = offset === 0;
  element("later").disabled = last >= total;
}

function card(cluster) {
  const codes = cluster.codes.slice(0, SHOWN);
  const node = make(
    "button",
    { type: "button", className: "card tall" },
    book.patches.card(codes),
    make("span", {}, String(cluster.id), make("small", {}, count(cluster.size, "code"))),
  );
  node.ariaLabel = `Cluster ${cluster.id}, ${count(cluster.size, "code")}`;
  node.dataset.cluster = cluster.id;
  node.addEventListener("click", () => chooseCluster(cluster.id));
  return node;
}

/** Show a node of the tree, and the cluster that it is or belongs to. */
async function go(node, { quietly = false } = {}) {
  await choose(async (nodeOf, clusterOf) => {
    const branch = await nodeOf(node);
    return [branch, await clusterOf(branch.cluster)];
  }, quietly);
}

async function chooseCluster(id) {
  await choose(async (nodeOf, clusterOf) => {
    const cluster = await clusterOf(id);
    return [await nodeOf(cluster.node), cluster];
  }, false);
}

/** Show what is found, unless another book is there by then, or something else was looked for. */
async function choose(find, quietly) {
  const asked = book;
  const isLast = beginChoice();
  const question = (kind) => (number) => (number === null ? null : asked.ask(`${kind}/${number}?`));
  try {
    const [branch, cluster] = await find(question("nodes"), question("clusters"));
    if (book === asked && isLast()) show(branch, cluster, quietly);
  } catch (error) {
    if (book === asked && isLast()) tell(element("find-error"), error.message);
  }
}

function show(branch, cluster, quietly) {
  tell(element("find-error"), "");
  redraw = () => showBranch(book, branch, cluster);
  redraw();
  chosen = cluster?.id;
  mark();
  const aside = element("branch");
  aside.scrollTop = 0;
  if (quietly) return;
  history.replaceState(null, "", branch ? `#codebook/${branch.node}` : "#codebook");
  aside.focus({ preventScroll: true });
  if (matchMedia("(max-width: 52rem)").matches) aside.scrollIntoView({ block: "start" });
}

function failed(error) {
  if (book) {
    tell(element("find-error"), error.message);
    return;
  }
  tell(element("codebook-facts"), "");
  tell(element("codebook-error"), error.message);
}

const turnTo = (to) => turn(to).catch(failed);
element("sort").addEventListener("change", () => turnTo(0));
element("least").addEventListener("change", () => turnTo(0));
element("earlier").addEventListener("click", () => turnTo(Math.max(0, offset - PAGE)));
element("later").addEventListener("click", () => turnTo(offset + PAGE));
find.addEventListener("submit", (event) => {
  event.preventDefault();
  const kind = element("find-kind").value;
  const text = element("find-number").value.trim();
  const most = (kind === "code" ? book.num_codes : book.num_clusters) - 1;
  if (!/^\d+$/.test(text) || Number(text) > most) {
    beginChoice(); // what is still asked for would take the line away again
    tell(element("find-error"), `There are ${kind}s 0 to ${most.toLocaleString("en")}.`);
    element("find-number").setAttribute("aria-invalid", "true");
    return;
  }
  element("find-number").removeAttribute("aria-invalid");
  if (kind === "code") go(Number(text));
  else chooseCluster(Number(text));
});
