// Small drawings in the colours of the page: the merges of a cluster, and a figure over time.

import { make } from "./dom.js";

const LEAF = 24; // pixels a code, at most
const LEAST_LEAF = 12;
const WIDTH = 360; // pixels, unless the codes would become too small
const GAP = 5;
const DEPTH = 132; // pixels from the leaves to the highest merge

/** Merges of a cluster over its codes, which stand in the order of the tree's leaves. */
export function dendrogram(cluster, patches) {
  const { codes, merges } = cluster;
  const leaf = Math.max(LEAST_LEAF, Math.min(LEAF, Math.floor(WIDTH / codes.length) - GAP));
  const [canvas, context] = sheet(codes.length * (leaf + GAP) - GAP, DEPTH + leaf + 8);
  const top = merges[0].height || 1; // codes that are all the same merge at 0
  const place = new Map(); // node -> [x, y]
  codes.forEach((code, index) => {
    const left = index * (leaf + GAP);
    patches.draw(context, code, left, DEPTH + 8, leaf);
    place.set(code, [left + leaf / 2, DEPTH + 4]);
  });
  context.strokeStyle = colour("--accent");
  context.lineWidth = 1.5;
  for (const { node, height, children } of [...merges].reverse()) {
    const [[x1, y1], [x2, y2]] = children.map((child) => place.get(child));
    const y = DEPTH - (height / top) * (DEPTH - 8);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x1, y);
    context.lineTo(x2, y);
    context.lineTo(x2, y2);
    context.stroke();
    place.set(node, [(x1 + x2) / 2, y]);
  }
  return canvas;
}

/** Values over time as a line over a soft surface; the newest at the right. */
export function spark(values, most) {
  const [canvas, context] = sheet(200, 36);
  const high = Math.max(...values, 1e-9);
  const at = (index) => 200 - ((values.length - 1 - index) / (most - 1)) * 200;
  const up = (value) => 34 - (value / high) * 30;
  context.beginPath();
  values.forEach((value, index) => context.lineTo(at(index), up(value)));
  context.strokeStyle = colour("--accent");
  context.lineWidth = 1.5;
  context.stroke();
  context.lineTo(200, 36);
  context.lineTo(at(0), 36);
  context.globalAlpha = 0.15;
  context.fillStyle = colour("--accent");
  context.fill();
  return canvas;
}

function sheet(width, height) {
  const scale = Math.ceil(devicePixelRatio);
  const canvas = make("canvas", { width: width * scale, height: height * scale });
  canvas.style.width = `${width}px`;
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return [canvas, context];
}

/** A colour of the page as it is now; canvases do not know the names. */
function colour(name) {
  const probe = make("i", { className: "probe-colour" });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
