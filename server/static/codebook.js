// The codebook view: pages of clusters, and the branch that was chosen among them.

import { showBranch } from "./branch.js";
import { count, element, make, tell } from "./dom.js";
import { Patches } from "./patches.js";
import { ask } from "./service.js";

const PAGE = 60; // clusters
const SHOWN = 12; // codes of one

const find = element("find");

let book = null; // of the model that is shown
let offset = 0;
let total = 0;

/** Show the codebook of a model, and a node of its tree if one is given. */
export async function openCodebook(model, node) {
  try {
    if (book?.model !== model.name || book?.version !== model.version) await load(model);
    if (book) await go(node ?? book.root, { quietly: true });
  } catch (error) {
    failed(error);
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
  const base = `/models/${encodeURIComponent(model.name)}/codebook`;
  element("codebook-body").hidden = true;
  if (!model.has_codebook) {
    throw new Error(
      `${model.name} ${model.version} was published without pictures of its codebook. ` +
        "Every version that masc models publish writes has them.",
    );
  }
  tell(element("codebook-facts"), "Loading…");
  tell(element("codebook-error"), "");
  const summary = await ask(base);
  const version = encodeURIComponent(summary.version);
  const patches = await Patches.load(`${base}/patches?v=${version}`, summary.patches);
  book = { ...summary, base, patches, go };
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
  const page = await ask(`${book.base}/clusters?${query}`);
  ({ offset, total } = page);
  element("clusters").replaceChildren(...page.clusters.map((cluster) => make("li", {}, card(cluster))));
  mark();
  const last = Math.min(offset + PAGE, total);
  element("page-line").textContent = total
    ? `${(offset + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${count(total, "cluster")}`
    : "No cluster is that large.";
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
  try {
    const branch = await ask(`${book.base}/nodes/${node}`);
    const cluster =
      branch.cluster === null ? null : await ask(`${book.base}/clusters/${branch.cluster}`);
    show(branch, cluster, quietly);
  } catch (error) {
    tell(element("find-error"), error.message);
  }
}

async function chooseCluster(id) {
  try {
    const cluster = await ask(`${book.base}/clusters/${id}`);
    const branch = cluster.node === null ? null : await ask(`${book.base}/nodes/${cluster.node}`);
    show(branch, cluster, false);
  } catch (error) {
    tell(element("find-error"), error.message);
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
    tell(element("find-error"), `There are ${kind}s 0 to ${most.toLocaleString("en")}.`);
    element("find-number").setAttribute("aria-invalid", "true");
    return;
  }
  element("find-number").removeAttribute("aria-invalid");
  if (kind === "code") go(Number(text));
  else chooseCluster(Number(text));
});
