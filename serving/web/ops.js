// The page of operations: scrapes /metrics, and shows what happens between one scrape and another.

import { call, text } from "./api.js";
import { byId, el } from "./dom.js";
import { keyButton } from "./key.js";
import { parse, Stretch } from "./metrics.js";
import { Plot } from "./plot.js";
import { stagesTable, troubleTable, variantsTable } from "./tables.js";
import { counted, ms, STAGES } from "./words.js";

const EVERY = 2000;
/** A replica that was not asked itself tells figures some seconds old: rates are of a longer time than that. */
const STRETCH = 12_000;
const SPAN = 5 * 60_000;
const MODEL_EVERY = 10;
const ROOT = "/v1/";

const rate = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 10 ? 0 : value >= 1 ? 1 : 2));
const share = (value) => `${(value * 100).toFixed(value > 0 && value < 0.1 ? 1 : 0)}%`;
const seconds = (value) => ms(value * 1000);
const isFeed = ({ endpoint = "" }) => endpoint === "/v1/recommend" || endpoint === "/v1/rank";
const isAsked = ({ endpoint = "" }) => endpoint.startsWith(ROOT);
const total = (values) => [...values.values()].reduce((sum, value) => sum + value, 0);

/** What is plotted: title, how a value is told, and the values of a stretch by name. */
const PLOTS = [
  [
    "Requests a second",
    rate,
    (one) => {
      const asked = one.rates("feedline_requests_total", "endpoint", isAsked);
      return new Map([...asked].map(([endpoint, value]) => [endpoint.slice(ROOT.length), value]));
    },
  ],
  [
    "Latency of feeds",
    seconds,
    (one) => {
      const [p50, p90, p99] = one.quantiles("feedline_request_seconds", [0.5, 0.9, 0.99], isFeed);
      return new Map(Object.entries({ p50, p90, p99 }));
    },
  ],
  [
    "Latency by stage, p99",
    seconds,
    (one) =>
      new Map(
        stagesOf(one).map((stage) => [
          STAGES[stage] ?? stage,
          one.quantiles("feedline_stage_seconds", [0.99], (labels) => labels.stage === stage)[0],
        ]),
      ),
  ],
  ["Requests waiting", String, (one) => new Map([["waiting", total(one.levels("feedline_queue_waiting", ""))]])],
  [
    "Errors and fallbacks a second",
    rate,
    (one) =>
      new Map([
        ["errors", total(one.rates("feedline_requests_total", "status", ({ status }) => Number(status) >= 500))],
        ["refused", total(one.rates("feedline_refused_total", "reason"))],
        ["fallbacks", total(one.rates("feedline_fallbacks_total", "reason"))],
      ]),
  ],
  ["Mean score shown, by model", (value) => value.toPrecision(3), (one) => one.means("feedline_score_mean", "model"), false],
].map(([title, shown, values, zero]) => ({ plot: new Plot(title, shown, SPAN, zero), values, points: [] }));

let scrapes = [];
let models = [];
let rounds = 0;
let paused = false;
let timer = 0;

function stagesOf(stretch) {
  const samples = stretch.after.families.get("feedline_stage_seconds_count") ?? [];
  return [...new Set(samples.map(({ labels }) => labels.stage))];
}

async function round() {
  clearTimeout(timer);
  try {
    if (rounds++ % MODEL_EVERY === 0) models = (await call("GET", "v1/model")).variants;
    const families = parse(await text("GET", "metrics"));
    const now = Date.now();
    scrapes = [...scrapes.filter(({ time }) => time >= now - STRETCH - EVERY), { time: now, families }];
    byId("error").hidden = true;
    show();
  } catch (error) {
    if (error.status === undefined) throw error;
    rounds = 0;
    byId("state").textContent = "No figures at the moment.";
    byId("error").replaceChildren(el("p", {}, error.message));
    byId("error").hidden = false;
  } finally {
    if (!paused) timer = setTimeout(round, EVERY);
  }
}

function show() {
  const after = scrapes.at(-1);
  const stretch = new Stretch(scrapes[0], after);
  describe(after);
  if (stretch.seconds === 0) return;
  for (const one of PLOTS) {
    one.points = [...one.points.filter(({ time }) => time > after.time - SPAN), { time: after.time, values: one.values(stretch) }];
    one.plot.update(one.points);
  }
  byId("tiles").replaceChildren(...tiles(stretch));
  replace("stages", stagesTable(stretch, stagesOf(stretch), seconds));
  replace("variants", variantsTable(stretch, models, rate, share));
  replace("trouble", troubleTable(stretch, rate));
}

/** A table that is drawn anew stays where it was scrolled to. */
function replace(id, table) {
  const place = byId(id);
  const { scrollLeft } = place;
  place.replaceChildren(table);
  place.scrollLeft = scrollLeft;
}

function describe({ time, families }) {
  const up = families.get("feedline_store_up") ?? [];
  const broken = up.filter(({ value }) => value === 0).length;
  const served = models.map(({ variant, model, shadow }) => `${variant} (${model}${shadow ? ", shadow" : ""})`).join(", ");
  const store = broken ? "the store cannot be read" : "the store answers";
  const state = `${counted(up.length, "replica")}, ${store}. Served: ${served}.`;
  // Said only when it is something else, so that a screen reader is not kept busy.
  if (byId("state").textContent !== state) byId("state").textContent = state;
  byId("age").textContent = `Figures of ${new Date(time).toLocaleTimeString("en-GB")}.`;
}

function tiles(stretch) {
  const asked = total(stretch.rates("feedline_requests_total", "endpoint", isAsked));
  const feeds = total(stretch.rates("feedline_feeds_total", "source"));
  const fallbacks = total(stretch.rates("feedline_fallbacks_total", "reason"));
  const errors = total(stretch.rates("feedline_requests_total", "status", ({ status }) => Number(status) >= 500));
  const [p50, p99] = stretch.quantiles("feedline_request_seconds", [0.5, 0.99], isFeed);
  const waiting = total(stretch.levels("feedline_queue_waiting", ""));
  const latency = (value) => (Number.isFinite(value) ? seconds(value) : "–");
  return [
    ["Requests a second", rate(asked)],
    ["Feed, p50", latency(p50)],
    ["Feed, p99", latency(p99)],
    ["Waiting", String(waiting)],
    ["Errors a second", rate(errors), errors > 0],
    ["Fallbacks", feeds > 0 ? share(fallbacks / feeds) : "–", fallbacks > 0],
  ].map(([name, value, alarm]) => el("div", { class: alarm ? "tile alarm" : "tile" }, el("dt", {}, name), el("dd", {}, value)));
}

byId("plots").replaceChildren(...PLOTS.map(({ plot }) => plot.root));
byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  if (paused) clearTimeout(timer);
  else round();
});
keyButton(round);
round();
