// Requests as commands for other places: curl and Python.

import { element, write } from "./dom.js";

const KEY_NAME = "MASC_API_KEY";

/** Commands that write the images to files. */
export function curl(requests) {
  return requests
    .map((body) => {
      const lines = [
        `curl --fail ${new URL("generate", document.baseURI)}`, // or the words of an error become the image
        ...(needsKey() ? [`-H "Authorization: Bearer $${KEY_NAME}"`] : []),
        "-H 'Content-Type: application/json'",
        ...(body.num_images === 1 ? [`-H 'Accept: image/${body.format}'`] : []),
        `-d '${JSON.stringify(body)}'`,
        body.num_images === 1 ? `-o ${file(body)}` : "-o answer.json",
      ];
      return lines.join(" \\\n    ");
    })
    .join("\n\n");
}

/** A program without dependencies that writes the images to files. */
export function python(requests) {
  const secret = needsKey() ? `, "Authorization": "Bearer " + os.environ["${KEY_NAME}"]` : "";
  return `import base64
import json
${needsKey() ? "import os\n" : ""}import pathlib
import urllib.request

requests = json.loads("""
${JSON.stringify(requests, null, 2).replaceAll("\\", "\\\\")}
""")
for body in requests:
    request = urllib.request.Request(
        "${new URL("generate", document.baseURI)}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"${secret}},
    )
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    for image in answer["images"]:
        name = f"class{body['class_id']}-cfg{body['cfg_scale']}-{body['cfg_schedule']}-{body['decoding']}"
        path = pathlib.Path(f"{name}-{image['seed']}.{image['format']}")
        path.write_bytes(base64.b64decode(image["b64"]))
        print(path, round(image["entropy_bits"], 2), "bits a position")
`;
}

/** Put a text on the clipboard, or show it where that is not allowed. */
export async function copy(kind, text) {
  try {
    await navigator.clipboard.writeText(text);
    write(element("progress"), `Copied as ${kind}.`);
  } catch {
    const box = element("code-text");
    box.value = text;
    element("code").showModal();
    box.select();
  }
}

function file({ class_id: id, cfg_scale: scale, cfg_schedule: schedule, decoding, seed, format }) {
  return `class${id}-cfg${scale}-${schedule}-${decoding}-${seed}.${format}`;
}

function needsKey() {
  return !element("key-field").hidden;
}
