// The text format of Prometheus, as far as the page reads it: sums and histograms.

/** @returns {{name: string, labels: Record<string, string>, value: number}[]} */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-z_]\w*)(?:\{(.*)\})? (\S+)$/i.exec(line);
    if (!match) continue;
    const pairs = (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g);
    const labels = Object.fromEntries([...pairs].map(([, name, value]) => [name, value]));
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

/** Sum over all samples of a name that fit the labels. */
export function sum(samples, name, wanted = {}) {
  return fitting(samples, name, wanted).reduce((all, { value }) => all + value, 0);
}

/**
 * What a histogram has counted since an earlier look.
 * @returns {{count: number, seconds: number, buckets: [number, number][]}} cumulative buckets
 */
export function since(earlier, samples, name, wanted = {}) {
  const grown = (part, more = {}) =>
    sum(samples, `${name}_${part}`, { ...wanted, ...more }) -
    sum(earlier, `${name}_${part}`, { ...wanted, ...more });
  const bounds = new Set(fitting(samples, `${name}_bucket`, wanted).map(({ labels }) => labels.le));
  const buckets = [...bounds].map((le) => [le === "+Inf" ? Infinity : Number(le), grown("bucket", { le })]);
  buckets.sort(([one], [other]) => one - other);
  return { count: grown("count"), seconds: grown("sum"), buckets };
}

/** Whether anything that only grows has shrunk: the process that counts began anew. */
export function beganAnew(earlier, samples) {
  const idOf = ({ name, labels }) => JSON.stringify([name, labels]);
  const values = new Map(samples.map((sample) => [idOf(sample), sample.value]));
  return earlier.some(
    (sample) => /_(total|count)$/.test(sample.name) && !(values.get(idOf(sample)) >= sample.value),
  );
}

/** A quantile of a histogram, interpolated within its bucket; null of nothing. */
export function quantile(histogram, share) {
  const wanted = share * histogram.count;
  if (!histogram.count) return null;
  let [low, below] = [0, 0];
  for (const [bound, upTo] of histogram.buckets) {
    if (upTo >= wanted) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (wanted - below)) / Math.max(upTo - below, 1e-9);
    }
    [low, below] = [bound, upTo];
  }
  return low;
}

function fitting(samples, name, wanted) {
  return samples.filter(
    (sample) =>
      sample.name === name &&
      Object.entries(wanted).every(([label, value]) => sample.labels[label] === value),
  );
}
