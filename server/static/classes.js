// The class picker: one radio button a class, with a picture, and a search over all.

import { element, make, tell } from "./dom.js";

const list = element("classes");
const search = element("search");

let classes = [];
let tiles = [];

/** Show the classes of a model; the chosen one stays where it is among them. */
export function showClasses(model, found, chosen = 0) {
  classes = found;
  tiles = classes.map(({ id, name }) => tile(model, id, name));
  list.replaceChildren(...tiles);
  choose(Math.min(chosen, classes.length - 1));
  search.value = "";
  search.placeholder = `Search ${classes.length.toLocaleString("en")} classes`;
  filter();
}

export const className = (id) => classes[id]?.name ?? `class ${id}`;

export const hasClass = (id) => id in classes;

export function chosenClass() {
  const radio = list.querySelector("input:checked");
  return radio ? Number(radio.value) : null;
}

export function choose(id) {
  const radio = tiles[id]?.querySelector("input");
  if (!radio) return;
  radio.checked = true;
  const box = tiles[id].getBoundingClientRect();
  const frame = list.getBoundingClientRect();
  if (box.top < frame.top || box.bottom > frame.bottom) list.scrollTop += box.top - frame.top;
}

function tile(model, id, name) {
  const radio = make("input", { type: "radio", name: "class", value: String(id) });
  const image = model.has_thumbnails ? thumbnail(model, id, name) : stand(name);
  return make("label", { title: `${name} (${id})` }, radio, image, make("span", {}, name));
}

function thumbnail(model, id, name) {
  const image = make("img", { alt: "", width: 64, height: 64, loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(stand(name)), { once: true });
  const version = encodeURIComponent(model.version);
  image.src = `models/${encodeURIComponent(model.name)}/classes/${id}/thumbnail?v=${version}`;
  return image;
}

/** Stands where a model was published without samples. */
function stand(name) {
  const initial = make("b", { textContent: name.slice(0, 1).toUpperCase() });
  initial.setAttribute("aria-hidden", "true");
  return initial;
}

function filter() {
  const wanted = search.value.trim().toLowerCase();
  let found = 0;
  classes.forEach(({ id, name }, index) => {
    const fits = name.toLowerCase().includes(wanted) || String(id) === wanted;
    tiles[index].hidden = !fits;
    found += fits;
  });
  tell(element("class-count"), wanted ? countOf(found) : "");
}

function countOf(found) {
  return found ? `${found} of ${classes.length} classes` : "No class is called so.";
}

/** Go from the search to the first class that it found; without a search, to the chosen one. */
function leave() {
  const first = tiles.find((node) => !node.hidden)?.querySelector("input");
  const target = search.value.trim() ? first : list.querySelector("input:checked");
  target?.focus();
  if (target) target.checked = true;
}

search.addEventListener("input", filter);
search.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown" && event.key !== "Enter") return;
  event.preventDefault();
  if (search.value.trim() || event.key === "ArrowDown") leave();
});
