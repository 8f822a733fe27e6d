// What was made earlier, kept in this browser: settings and a small picture, never a key.

import { element, make } from "./dom.js";

const NAME = "masc.history";
const MOST = 36;
const SIDE = 64; // pixels of a picture

const list = element("history-list");

let entries = load();
let again = () => {};

/** Show what there is; `choose(settings)` makes one again. */
export function openHistory(choose) {
  again = choose;
  show();
}

/** Remember a run by its settings, and the first of its images. */
export async function remember(settings, title, image) {
  const picture = await shrink(image);
  const same = JSON.stringify(settings);
  entries = entries.filter((entry) => JSON.stringify(entry.settings) !== same);
  entries.unshift({ settings, title, picture });
  entries.length = Math.min(entries.length, MOST);
  store();
  show();
}

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(NAME) ?? "[]");
    return Array.isArray(found) ? found.filter(isEntry).slice(0, MOST) : [];
  } catch {
    return []; // storage may be forbidden, or hold what is not ours
  }
}

function isEntry(entry) {
  const { settings, title, picture } = entry ?? {};
  return settings?.class_id >= 0 && title && String(picture).startsWith("data:image/");
}

function store() {
  while (entries.length) {
    try {
      localStorage.setItem(NAME, JSON.stringify(entries));
      return;
    } catch {
      entries.pop(); // no room, or no storage at all
    }
  }
}

function clear() {
  entries = [];
  try {
    localStorage.removeItem(NAME);
  } catch {
    // nothing was kept then
  }
  show();
  element("draw").focus();
}

function show() {
  element("history").hidden = entries.length === 0;
  list.replaceChildren(...entries.map((entry) => make("li", {}, card(entry))));
}

function card({ settings, title, picture }) {
  const image = make("img", { src: picture, alt: "", width: SIDE, height: SIDE });
  const text = make("span", {}, title, make("small", {}, `seed ${settings.seed}`));
  const node = make("button", { type: "button", className: "card" }, image, text);
  node.addEventListener("click", () => again(settings));
  return node;
}

async function shrink(image) {
  await image.decode();
  const side = Math.min(SIDE, image.naturalWidth);
  const canvas = make("canvas", { width: side, height: side });
  canvas.getContext("2d").drawImage(image, 0, 0, side, side);
  return canvas.toDataURL("image/webp", 0.9);
}

element("history-clear").addEventListener("click", clear);
