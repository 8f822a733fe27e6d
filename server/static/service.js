// The service: questions, answers, streams, and whether it is there at all.

const WATCH_SECONDS = 15;
const RETRY_SECONDS = 2;
const OTHER_VERSION = 409;

let key = () => "";
let model = () => "";
let report = () => {};
let renew = () => {};

/** An error in words; `fields` says which of the request's fields are at fault, and why. */
export class Problem extends Error {
  constructor(message, { status = 0, fields = [], name = "Problem" } = {}) {
    super(message);
    this.name = name;
    this.status = status;
    this.fields = fields;
  }
}

/**
 * Say where the key comes from, of which model the state is (of the default one where that is
 * empty), who wants to know it (ready, waiting, offline), and who that a question was about another
 * version than the one that is served.
 */
export function configure(options) {
  key = options.key;
  model = options.model;
  report = options.report;
  renew = options.renew;
}

/** Ask for JSON. */
export async function ask(path, options = {}) {
  const response = await send(path, options);
  if (response.status === OTHER_VERSION) renew();
  if (!response.ok) throw problemOf(await response.json().catch(() => null), response);
  return response.json();
}

/** Ask for text. */
export async function askText(path) {
  const response = await send(path, {});
  if (!response.ok) throw problemOf(null, response);
  return response.text();
}

/** Generate, and pass on every event; resolves with the last one, `done`. */
export async function generate(body, signal, onEvent) {
  const response = await send("generate", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, entropies: true }),
    signal,
  });
  if (!response.ok) throw problemOf(await response.json().catch(() => null), response);
  let done = null; // the stream is read to its end, or the service takes us for gone
  for await (const [name, data] of events(response.body)) {
    if (name === "error") throw problemOf(data);
    onEvent(name, data);
    if (name === "done") done = data;
  }
  if (!done) throw new Problem("The connection broke off before the images were there.");
  return done;
}

/** Keep looking whether images can be made, and report it. */
export async function watch() {
  for (;;) {
    let seconds = WATCH_SECONDS;
    try {
      const name = model();
      const { workers } = await ask(name ? `readyz?model=${encodeURIComponent(name)}` : "readyz");
      const versions = new Set(workers.map(({ version }) => version));
      report("ready", "Ready", [...versions].sort().join());
    } catch (error) {
      seconds = RETRY_SECONDS;
      if (error.status) report("waiting", error.message);
    }
    await new Promise((wake) => {
      setTimeout(wake, seconds * 1000);
      looked = wake;
    });
  }
}

let looked = () => {};

/** Look now, not when it is time. */
export const lookNow = () => looked();

async function send(path, options) {
  const secret = key();
  const headers = { Accept: "application/json", ...options.headers };
  // Not as Authorization: a browser has that one for the password of a proxy.
  if (secret && options.method === "POST") headers["X-API-Key"] = secret;
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    report("offline", "The service cannot be reached");
    looked(); // look again soon
    throw new Problem("The service cannot be reached. Is it still running?");
  }
}

function problemOf(document, response) {
  if (!document?.title) {
    const status = response?.status ?? 0;
    return new Problem(`The service answered ${status}.`, { status });
  }
  const wait = response?.headers.get("Retry-After");
  const advice = wait ? ` Try again in ${wait} s.` : "";
  return new Problem(`${document.title}: ${document.detail}.${advice}`, {
    status: document.status,
    fields: document.errors ?? [],
  });
}

/** Server-sent events of a body, as pairs of name and parsed data. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    report("offline", "The service cannot be reached");
    looked();
    throw new Problem("The connection broke off before the images were there.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5));
  }
  return data.length ? [name, JSON.parse(data.join("\n"))] : null;
}
