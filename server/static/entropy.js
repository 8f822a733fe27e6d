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

/** Positions of each row of the map: of the grid, or of the groups 1, 1, 2, 4, ... of a sequence. */
export function mapRows([rows, columns]) {
  if (rows > 1) return Array(rows).fill(columns);
  const groups = [1];
  for (let size = 1; size < columns; size *= 2) groups.push(size);
  return groups;
}

/** Row and column of a position. */
export function cellOf(rows, position) {
  let row = 0;
  let column = position;
  while (column >= rows[row]) column -= rows[row++];
  return [row, column];
}

/** Position at a place of the map, both shares from 0 to 1. */
export function positionAt(rows, x, y) {
  const index = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  const row = index(y, rows.length);
  return rows.slice(0, row).reduce((sum, count) => sum + count, 0) + index(x, rows[row]);
}

/** Draw the map of one image, a row as wide as any other. */
export function drawMap(canvas, rows, entropies, [low, high]) {
  canvas.width = Math.max(...rows);
  canvas.height = rows.length;
  const context = canvas.getContext("2d");
  entropies.forEach((bits, index) => {
    const [row, column] = cellOf(rows, index);
    const width = canvas.width / rows[row];
    const [red, green, blue] = colour((bits - low) / (high - low));
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${ALPHA / 255})`;
    context.fillRect(column * width, row, width, 1);
  });
}

/** Where a position is, and how unsure the model was there, of clusters too where it has a partition. */
export function describe(rows, entropies, position, clusterEntropies) {
  const [row, column] = cellOf(rows, position);
  const place = rows[0] < rows.at(-1)
    ? `group ${row + 1}, token ${column + 1} of ${rows[row]}`
    : `row ${row + 1}, column ${column + 1}`;
  const clusters = clusterEntropies ? `, clusters ${clusterEntropies[position].toFixed(2)}` : "";
  return `${place}: ${entropies[position].toFixed(2)} bits${clusters}`;
}

function colour(share) {
  const place = Math.min(1, Math.max(0, share)) * (STOPS.length - 1);
  const index = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[index].map((from, part) =>
    Math.round(from + (STOPS[index + 1][part] - from) * (place - index)),
  );
}
