// What /metrics says, as numbers: counters by their differences in time, histograms by their quantiles.

/** Samples of Prometheus' text format, by name: [{ labels, value, id }]; `id` is the series. */
export function parse(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const [, name, written = "", number] = found;
    const labels = {};
    for (const [, label, value] of written.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[label] = value.replace(/\\(.)/g, (_all, letter) => (letter === "n" ? "\n" : letter));
    }
    const value = number === "+Inf" ? Infinity : number === "-Inf" ? -Infinity : Number(number);
    if (!families.has(name)) families.set(name, []);
    families.get(name).push({ labels, value, id: written });
  }
  return families;
}

/** What two scrapes say of the time between them. */
export class Stretch {
  /** @param before, after { time: milliseconds, families: as `parse` gives them } */
  constructor(before, after) {
    this.before = before;
    this.after = after;
    this.seconds = (after.time - before.time) / 1000;
  }

  /** By how much each series of a counter has grown. One that is new, or began anew, has grown from nothing. */
  grown(name) {
    const old = new Map((this.before.families.get(name) ?? []).map((sample) => [sample.id, sample.value]));
    return (this.after.families.get(name) ?? []).map(({ labels, value, id }) => {
      const former = old.get(id) ?? 0;
      return { labels, value: value >= former ? value - former : value };
    });
  }

  /** Growth a second, by the values of a label; of those series that `only` lets through. */
  rates(name, label, only = () => true) {
    return summed(this.grown(name).filter(({ labels }) => only(labels)), label, 1 / this.seconds);
  }

  /** A gauge of now, summed over replicas, by the values of a label. */
  levels(name, label) {
    return summed(this.after.families.get(name) ?? [], label, 1);
  }

  /** A gauge of now, averaged over replicas, by the values of a label. */
  means(name, label) {
    const samples = this.after.families.get(name) ?? [];
    const counts = summed(samples.map((sample) => ({ ...sample, value: 1 })), label, 1);
    const sums = summed(samples, label, 1);
    return new Map([...sums].map(([key, value]) => [key, value / counts.get(key)]));
  }

  /** Quantiles of what a histogram has counted, NaN of nothing; of those series that `only` lets through. */
  quantiles(name, wanted, only = () => true) {
    const counts = new Map();
    for (const { labels, value } of this.grown(`${name}_bucket`)) {
      if (!only(labels)) continue;
      const end = labels.le === "+Inf" ? Infinity : Number(labels.le);
      counts.set(end, (counts.get(end) ?? 0) + value);
    }
    const ends = [...counts].sort(([one], [other]) => one - other);
    return wanted.map((share) => quantile(ends, share));
  }
}

function summed(samples, label, factor) {
  const sums = new Map();
  for (const { labels, value } of samples) {
    const key = labels[label] ?? "";
    sums.set(key, (sums.get(key) ?? 0) + value * factor);
  }
  return sums;
}

/** A quantile of cumulative counts [[end of a bucket, count up to it]], evenly spread within a bucket. */
export function quantile(ends, share) {
  const total = ends.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return NaN;
  const wanted = share * total;
  let [start, below] = [0, 0];
  for (const [end, count] of ends) {
    if (count >= wanted) {
      if (end === Infinity) return start;
      return start + (end - start) * (count > below ? (wanted - below) / (count - below) : 1);
    }
    [start, below] = [end, count];
  }
  return start;
}
