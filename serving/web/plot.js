// Small plots of what goes on in time, as SVG; the legend has the numbers, of now or of the moment pointed at.

import { el, svg } from "./dom.js";

const HEIGHT = 150;
const FEW = 3;
const SHORTEST = 60_000;
const MARGIN = { top: 8, right: 8, bottom: 22, left: 62 };

/** A plot of lines over the last `span` milliseconds. */
export class Plot {
  /**
   * @param title what is plotted
   * @param shown how a value is told
   * @param span milliseconds from the left end to the right one, at most
   * @param zero whether the scale begins at zero
   */
  constructor(title, shown, span, zero = true) {
    Object.assign(this, { title, shown, span, zero, points: [], names: [] });
    this.canvas = el("div", { class: "canvas", pointermove: (event) => this.point(event), pointerleave: () => this.point() });
    this.legend = el("ul", { class: "legend" });
    this.root = el("figure", { class: "panel plot" }, el("figcaption", {}, el("h2", {}, title), this.legend), this.canvas);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** Draw points [{ time, values: Map name → number }], oldest first; a name keeps its colour as long as the page is open. */
  update(points) {
    this.points = points;
    for (const name of points.at(-1)?.values.keys() ?? []) if (!this.names.includes(name)) this.names.push(name);
    this.draw();
  }

  point(event) {
    this.at = event ? event.clientX - this.canvas.getBoundingClientRect().left : undefined;
    this.draw();
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    const end = this.points.at(-1)?.time ?? 0;
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const kept = end - (this.points[0]?.time ?? end);
    const span = kept <= SHORTEST ? SHORTEST : Math.min(Math.ceil(kept / 60_000) * 60_000, this.span);
    const x = (time) => right - ((end - time) / span) * (right - MARGIN.left);
    const values = this.points.flatMap(({ values }) => [...values.values()]).filter(Number.isFinite);
    const ends = this.zero || !values.length ? [0, ...values] : values;
    const ticks = ticksOf(Math.min(...ends), Math.max(...ends));
    const [low, high] = [ticks[0], ticks.at(-1)];
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - MARGIN.top);
    const picked = this.at === undefined ? this.points.at(-1) : nearest(this.points, this.at, x);
    const told = this.tell(picked);
    const shown = this.names.map((name) => this.isTold(name));
    const marks = [
      ...ticks.map((tick) => svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) })),
      ...ticks.map((tick) => svg("text", { class: "end", x: MARGIN.left - 6, y: y(tick) + 4 }, tick === 0 ? 0 : this.shown(tick))),
      svg("text", { x: MARGIN.left, y: HEIGHT - 5 }, `${Math.round(span / 60_000)} min ago`),
      svg("text", { class: "end", x: right, y: HEIGHT - 5 }, "now"),
      ...this.names.map((name, number) => shown[number] && svg("path", { class: `c${colour(number)}`, d: path(this.points, name, x, y) })),
    ];
    if (this.at !== undefined && picked) {
      marks.push(svg("line", { class: "cursor", x1: x(picked.time), x2: x(picked.time), y1: MARGIN.top, y2: bottom }));
    }
    const now = told.filter((_one, number) => shown[number]).map((one) => one.join(" "));
    const label = `${this.title}: ${now.length ? now.join(", ") : "nothing yet"}`;
    this.canvas.replaceChildren(
      svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": label }, ...marks),
    );
    const keys = told.map(([name, value], number) =>
      el("li", { hidden: !shown[number] }, el("span", { class: `key c${colour(number)}`, "aria-hidden": "true" }), `${name} `, el("b", {}, value)),
    );
    this.legend.replaceChildren(...keys);
    if (!now.length) this.legend.append(el("li", { class: "soft" }, "nothing yet"));
  }

  /** Of many lines, those that lie at nothing all the time are left out. */
  isTold(name) {
    return this.names.length <= FEW || this.points.some(({ values }) => values.get(name) > 0);
  }

  tell(picked) {
    return this.names.map((name) => {
      const value = picked?.values.get(name);
      return [name, Number.isFinite(value) ? this.shown(value) : "–"];
    });
  }
}

const colour = (number) => (1 + number) % 7;

/** The line of a name; it is broken where there is no value. */
function path(points, name, x, y) {
  let drawing = false;
  return points
    .map(({ time, values }) => {
      const value = values.get(name);
      if (!Number.isFinite(value)) {
        drawing = false;
        return "";
      }
      const step = `${drawing ? "L" : "M"}${x(time).toFixed(1)},${y(value).toFixed(1)}`;
      drawing = true;
      return step;
    })
    .join("");
}

const nearest = (points, at, x) =>
  points.reduce((best, one) => (!best || Math.abs(x(one.time) - at) < Math.abs(x(best.time) - at) ? one : best), undefined);

/** Three or so round numbers that span two. */
export function ticksOf(low, high) {
  if (high === low) return [low, low + 1];
  const rough = (high - low) / 2;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.floor(low / step + 1e-9); tick * step < high + step * 0.999; tick++) ticks.push(tick * step);
  return ticks;
}
