// The entropy map: bits a position as colours, from the surest to the least sure of a result.

const STOPS = [
  [24, 18, 66],
  [104, 31, 110],
  [196, 60, 78],
  [246, 139, 31],
  [252, 243, 160],
];
const ALPHA = 175;

/** Range of bits over images, outward to halves; there may be more than a call has arguments. */
export function rangeOf(images) {
  let [least, most] = [Infinity, -Infinity];
  for (const { entropies } of images) {
    for (const bits of entropies ?? []) {
      least = Math.min(least, bits);
      most = Math.max(most, bits);
    }
  }
  if (least > most) return [0, 1];
  const low = Math.floor(least * 2) / 2;
  return [low, Math.max(Math.ceil(most * 2) / 2, low + 0.5)];
}

/** Draw the map of one image, one pixel a position. */
export function drawMap(canvas, entropies, [low, high]) {
  const side = Math.round(Math.sqrt(entropies.length));
  canvas.width = side;
  canvas.height = side;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(side, side);
  entropies.forEach((bits, index) => {
    const [red, green, blue] = colour((bits - low) / (high - low));
    pixels.data.set([red, green, blue, ALPHA], 4 * index);
  });
  context.putImageData(pixels, 0, 0);
}

/** Where a position is, and how unsure the model was there, of clusters too where it has a partition. */
export function describe(entropies, position, clusterEntropies) {
  const side = Math.round(Math.sqrt(entropies.length));
  const row = Math.floor(position / side) + 1;
  const column = (position % side) + 1;
  const clusters = clusterEntropies ? `, clusters ${clusterEntropies[position].toFixed(2)}` : "";
  return `row ${row}, column ${column}: ${entropies[position].toFixed(2)} bits${clusters}`;
}

function colour(share) {
  const place = Math.min(1, Math.max(0, share)) * (STOPS.length - 1);
  const index = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[index].map((from, part) =>
    Math.round(from + (STOPS[index + 1][part] - from) * (place - index)),
  );
}
