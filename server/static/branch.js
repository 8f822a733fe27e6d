// A branch of the tree: its codes, the two that it is made of, and what it becomes part of.

import { dendrogram } from "./chart.js";
import { button, count, element, make } from "./dom.js";

const MOST_LEAVES = 40; // of a dendrogram
const MOST_NUMBERED = 400; // codes with their numbers
const ABOVE = 6;

const aside = element("branch");

/** @param {{patches: import("./patches.js").Patches, root: number, go: (node: number) => void}} book */
export function showBranch(book, branch, cluster) {
  const isCluster = cluster && (cluster.node === branch?.node || !branch);
  aside.replaceChildren(
    make("h2", {}, titleOf(branch, cluster, isCluster)),
    make("p", { className: "hint" }, factsOf(branch, cluster, isCluster)),
    ...(isCluster ? insideCluster(book, cluster) : []),
    ...(branch && !isCluster ? [codesOf(book, branch)] : []),
    ...(branch?.children.length ? children(book, branch) : []),
    ...(branch?.above.length ? above(book, branch) : []),
  );
}

function titleOf(branch, cluster, isCluster) {
  if (isCluster) return `Cluster ${cluster.id}`;
  if (branch.size === 1) return `Code ${branch.node}`;
  return branch.above.length ? `Branch of ${count(branch.size, "code")}` : "The whole tree";
}

function factsOf(branch, cluster, isCluster) {
  if (isCluster) {
    const made = cluster.size > 1 && cluster.height !== null;
    const height = made ? `, merged at ${cluster.height.toFixed(3)}` : "";
    const none = cluster.node === null ? "; not a branch of the tree as it is shown" : "";
    return `${count(cluster.size, "code")}${height}${none}.`;
  }
  const belongs = branch.cluster === null
    ? `in ${count(branch.num_clusters, "cluster")}`
    : `in cluster ${branch.cluster}`;
  return branch.size === 1
    ? `One code, ${belongs}.`
    : `${count(branch.size, "code")} ${belongs}, merged at ${branch.height.toFixed(3)}.`;
}

function insideCluster(book, cluster) {
  const parts = [];
  const whole = cluster.merges.length === cluster.size - 1;
  if (cluster.size > 1 && cluster.size <= MOST_LEAVES && whole) {
    const drawing = make("div", { className: "scroll", role: "img" });
    drawing.tabIndex = 0;
    drawing.ariaLabel = `Merges of cluster ${cluster.id}, from its codes up to the whole`;
    drawing.append(dendrogram(cluster, book.patches));
    parts.push(drawing);
  }
  const shown = cluster.codes.slice(0, MOST_NUMBERED);
  const items = shown.map((code) => make("li", {}, book.patches.mosaic([code], 1, 32), String(code)));
  parts.push(make("ul", { className: "codes", ariaLabel: "Codes" }, ...items));
  const left = cluster.size - shown.length;
  if (left) parts.push(make("p", { className: "hint" }, `and ${count(left, "code")} more`));
  return parts;
}

function codesOf(book, branch) {
  const box = make("div", { className: "overview", role: "img" });
  box.ariaLabel = branch.size > branch.codes.length
    ? `${branch.codes.length} of ${count(branch.size, "code")}, evenly taken`
    : `All ${count(branch.size, "code")}`;
  box.append(book.patches.mosaic(branch.codes, 12, 29));
  return box;
}

function children(book, branch) {
  const cards = branch.children.map((child) => {
    const kind = child.size === 1 ? `Code ${child.node}` : count(child.size, "code");
    const height = child.size === 1 ? "" : ` at ${child.height.toFixed(3)}`;
    const within = child.cluster === null
      ? count(child.num_clusters, "cluster")
      : `cluster ${child.cluster}`;
    const text = make("span", {}, kind, make("small", {}, `${within}${height}`));
    const card = make(
      "button",
      { type: "button", className: "card tall" },
      book.patches.mosaic(spread(child.codes, 24), 6, 24),
      text,
    );
    card.addEventListener("click", () => book.go(child.node));
    return make("li", {}, card);
  });
  return [
    make("h3", {}, "Made of"),
    make("ul", { className: "children", ariaLabel: "Made of" }, ...cards),
  ];
}

function above(book, branch) {
  const shown = branch.above.slice(0, ABOVE);
  const items = shown.map(({ node, size, height }) => {
    const text = node === book.root ? "the whole tree" : count(size, "code");
    return make("li", {}, button(`${text} at ${height.toFixed(3)}`, () => book.go(node)));
  });
  const left = branch.num_above - shown.length;
  const top = left
    ? [make("li", {}, button(`${left} merges up: the whole tree`, () => book.go(book.root)))]
    : [];
  return [
    make("h3", {}, "Becomes part of"),
    make("ol", { className: "above" }, ...items, ...top),
  ];
}

function spread(codes, most) {
  if (codes.length <= most) return codes;
  const step = (codes.length - 1) / (most - 1);
  return Array.from({ length: most }, (_, index) => codes[Math.round(index * step)]);
}
