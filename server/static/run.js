// A run: what was chosen becomes requests, whose events go to the cells that show the images.

import { element } from "./dom.js";
import { generate } from "./service.js";

const MOST_AT_ONCE = 3; // browsers have six connections a host, and the page needs some besides

const NO_CODES = { code_temperature: undefined, code_top_k: undefined, code_cfg_scale: undefined }; // left out of JSON

/**
 * Requests and cells of the settings. A cell shows one image of one request.
 * @returns {{title: string, requests: object[], cells: {label: string, request: number, image: number}[]}}
 */
export function plan(settings, name, decodings) {
  const { compare, scales, cfg_start: start, ...shared } = settings;
  const body = shared.cfg_schedule === "step" ? { ...shared, cfg_start: start } : shared;
  if (compare === "cfg") {
    const labelled = scales.map((scale) => [`CFG ${scale}`, { cfg_scale: scale }]);
    return row(`${name} · CFG scales · ${body.decoding}`, body, labelled);
  }
  if (compare === "schedules") {
    const schedules = Array.from(element("cfg-schedule").options, (option) => option.value);
    const labelled = schedules.map((schedule) => [
      schedule === "step" ? `step from ${start}` : schedule,
      { cfg_schedule: schedule, cfg_start: schedule === "step" ? start : undefined }, // left out of JSON
    ]);
    return row(`${name} · CFG schedules · CFG ${body.cfg_scale} · ${body.decoding}`, body, labelled);
  }
  if (compare === "decodings") {
    const labelled = decodings.map((decoding) => [
      decoding,
      { decoding, ...(decoding === "complete" ? {} : NO_CODES) },
    ]);
    return row(`${name} · decodings · ${guidance(body)}`, body, labelled);
  }
  return {
    title: `${name} · ${guidance(body)} · ${body.decoding}`,
    requests: [body],
    cells: Array.from({ length: body.num_images }, (_, image) => ({ label: "", request: 0, image })),
  };
}

const guidance = ({ cfg_scale: scale, cfg_schedule: schedule }) =>
  `CFG ${scale}${schedule === "constant" ? "" : ` ${schedule}`}`;

function row(title, body, labelled) {
  return {
    title,
    requests: labelled.map(([, change]) => ({ ...body, num_images: 1, ...change })),
    cells: labelled.map(([label], request) => ({ label, request, image: 0 })),
  };
}

/**
 * Send the requests, a few at a time; `onEvent(request, name, data)` hears everything.
 * After an error no more are sent, and those under way go on.
 * @returns {Promise<{done: (object | null)[], error: Error | null}>} `done` event of each request,
 *   null of one that came to nothing, and the first error
 */
export async function execute(requests, signal, onEvent) {
  const done = requests.map(() => null);
  let error = null;
  let next = 0;
  const sendInTurn = async () => {
    while (next < requests.length && !error) {
      const index = next++;
      try {
        done[index] = await generate(requests[index], signal, (name, data) => onEvent(index, name, data));
      } catch (reason) {
        error ??= reason;
      }
    }
  };
  await Promise.all(Array.from({ length: MOST_AT_ONCE }, sendInTurn));
  return { done, error };
}
