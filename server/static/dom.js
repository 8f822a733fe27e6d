// Elements: found by their ids, or made.

/** The element of that id. */
export const element = (id) => document.getElementById(id);

/** A new element with properties (or attributes, where the name has a dash) and children. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** A quiet button that says what it does. */
export function button(text, act, label = text) {
  const node = make("button", { type: "button", className: "quiet small", textContent: text });
  if (label !== text) node.ariaLabel = label;
  node.addEventListener("click", act);
  return node;
}

/** Set a text where it differs: what is written anew, though the same, is read out anew. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show a text, or hide the element when there is none. */
export function tell(node, text) {
  write(node, text);
  node.hidden = !text;
}

/** Begin something, and get to ask whether nothing was begun since: an answer may overtake a later one. */
export function turns() {
  let last = 0;
  return () => {
    const mine = ++last;
    return () => mine === last;
  };
}

export const count = (number, noun) =>
  `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** Seconds for people. */
export function duration(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(2)} s` : `${Math.round(seconds / 60)} min`;
}
