// A run: what was chosen becomes requests, whose events go to the cells that show the images.

import { generate } from "./service.js";

/**
 * Requests and cells of the settings. A cell shows one image of one request.
 * @returns {{title: string, requests: object[], cells: {label: string, request: number, image: number}[]}}
 */
export function plan(settings, name, decodings) {
  const { compare, scales, ...body } = settings;
  if (compare === "cfg") {
    const labelled = scales.map((scale) => [`CFG ${scale}`, { cfg_scale: scale }]);
    return row(`${name} · CFG scales · ${body.decoding}`, body, labelled);
  }
  if (compare === "decodings") {
    const labelled = decodings.map((decoding) => [decoding, { decoding }]);
    return row(`${name} · decodings · CFG ${body.cfg_scale}`, body, labelled);
  }
  return {
    title: `${name} · CFG ${body.cfg_scale} · ${body.decoding}`,
    requests: [body],
    cells: Array.from({ length: body.num_images }, (_, image) => ({ label: "", request: 0, image })),
  };
}

function row(title, body, labelled) {
  return {
    title,
    requests: labelled.map(([, change]) => ({ ...body, num_images: 1, ...change })),
    cells: labelled.map(([label], request) => ({ label, request, image: 0 })),
  };
}

/**
 * Send all requests at once; `onEvent(request, name, data)` hears everything.
 * The first error ends the others. Resolves with the `done` event of each request.
 */
export async function execute(requests, controller, onEvent) {
  try {
    return await Promise.all(
      requests.map((body, index) =>
        generate(body, controller.signal, (name, data) => onEvent(index, name, data)),
      ),
    );
  } catch (error) {
    controller.abort();
    throw error;
  }
}
