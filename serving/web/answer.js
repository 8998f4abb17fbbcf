// How a feed was answered: by which variant and model, from what, how long each stage took.

import { byId, el } from "./dom.js";
import { ms, STAGES } from "./words.js";

const ORDER = Object.keys(STAGES);
const COLOURS = 7;

/** Draw the foot of the feed. */
export function showAnswer(person, models) {
  const { feed } = person;
  const stages = Object.entries(feed.latency_ms)
    .filter(([name]) => name !== "total")
    .sort(([one], [other]) => place(one) - place(other));
  const total = stages.reduce((sum, [, value]) => sum + value, 0);
  const facts = [
    ["Variant", feed.variant],
    ["Model", feed.model],
    ["Source", feed.source],
    ["Fallback", feed.fallback ?? "no"],
    ["Request", feed.request_id],
  ];
  const card = models.find((one) => one.variant === feed.variant)?.card;
  const foot = byId("answer");
  foot.hidden = false;
  foot.replaceChildren(
    el("h2", {}, "How it was answered"),
    el("dl", { class: "facts" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("p", {}, el("b", {}, ms(total)), ` in the service, ${ms(person.waited)} until it was here.`),
    stageBar(stages, total),
    el(
      "ul",
      { class: "legend" },
      ...stages.map(([name, value], number) =>
        el("li", {}, el("span", { class: `key c${number % COLOURS}`, "aria-hidden": "true" }), `${STAGES[name] ?? name} ${ms(value)}`),
      ),
    ),
    card ? about(card) : "",
  );
}

const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);

function stageBar(stages, total) {
  const parts = stages.map(([, value], number) => {
    const part = el("span", { class: `c${number % COLOURS}` });
    part.style.setProperty("flex-grow", total > 0 ? value / total : 1);
    return part;
  });
  return el("div", { class: "stages", "aria-hidden": "true" }, ...parts);
}

function about(card) {
  const told = Object.entries(card).filter(([, value]) => ["string", "number"].includes(typeof value));
  const shown = (value) => (typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 4 }) : value);
  return el(
    "details",
    { class: "more" },
    el("summary", {}, "About the model"),
    el("dl", {}, ...told.flatMap(([name, value]) => [el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, shown(value))])),
  );
}
