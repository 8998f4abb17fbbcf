// The tables of the page of operations.

import { el } from "./dom.js";
import { STAGES } from "./words.js";

/** How long each stage takes, half of the time and nearly always. */
export function stagesTable(stretch, stages, seconds) {
  const told = (value) => (Number.isFinite(value) ? seconds(value) : "–");
  const rows = stages.map((stage) => {
    const found = stretch.quantiles("feedline_stage_seconds", [0.5, 0.9, 0.99], (labels) => labels.stage === stage);
    return [STAGES[stage] ?? stage, ...found.map(told)];
  });
  return table(["Stage", "p50", "p90", "p99"], rows, "No feed was asked for yet.");
}

/** Variants beside each other, one a column. */
export function variantsTable(stretch, models, rate, share) {
  const columns = models.map(({ variant, model, shadow }) => {
    const mine = (labels) => labels.variant === variant;
    const sources = stretch.rates("feedline_feeds_total", "source", mine);
    const feeds = [...sources.values()].reduce((sum, value) => sum + value, 0);
    const shadows = stretch.rates("feedline_shadows_total", "outcome", mine);
    const part = (source) => (feeds > 0 ? share((sources.get(source) ?? 0) / feeds) : "–");
    const gauge = (name) => stretch.means(name, "model").get(model);
    const [mean, deviation] = [gauge("feedline_score_mean"), gauge("feedline_score_deviation")];
    return [
      shadow ? `${variant} (shadow)` : variant,
      model,
      rate(shadow ? (shadows.get("answered") ?? 0) : feeds),
      ...["model", "taste", "popularity"].map(part),
      mean === undefined ? "–" : `${mean.toPrecision(3)} ± ${deviation.toPrecision(2)}`,
    ];
  });
  const names = ["Variant", "Model", "Feeds a second", "From history", "From taste alone", "Popular", "Score shown"];
  const rows = names.map((name, row) => [name, ...columns.map((column) => column[row])]);
  return table(rows[0], columns.length ? rows.slice(1) : [], "Nothing is served.");
}

const TROUBLE = [
  ["feedline_requests_total", "status", (value) => `answered ${value}`, ({ status }) => Number(status) >= 400],
  ["feedline_refused_total", "reason", (value) => `refused: ${value}`],
  ["feedline_fallbacks_total", "reason", (value) => `fallback: ${value}`],
  ["feedline_store_errors_total", "", () => "calls of the store that failed"],
  ["feedline_log_errors_total", "log", (value) => `lines not written: ${value}`],
  ["feedline_shadows_total", "outcome", (value) => `shadow ${value}`, ({ outcome }) => outcome !== "answered"],
];

/** What went wrong, by kind: now and since the replicas started. */
export function troubleTable(stretch, rate) {
  const rows = TROUBLE.flatMap(([name, label, words, only = () => true]) => {
    const now = stretch.rates(name, label, only);
    const sums = new Map();
    for (const { labels, value } of stretch.after.families.get(name) ?? []) {
      if (only(labels)) sums.set(labels[label] ?? "", (sums.get(labels[label] ?? "") ?? 0) + value);
    }
    return [...sums].filter(([, value]) => value > 0).map(([key, value]) => [words(key), rate(now.get(key) ?? 0), value.toLocaleString("en")]);
  });
  return table(["Kind", "a second", "in all"], rows, "Nothing went wrong since the replicas have started.");
}

function table(head, rows, nothing) {
  if (!rows.length) return el("p", { class: "soft" }, nothing);
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((cell) => el("td", {}, cell))))),
  );
}
