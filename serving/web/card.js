// A place of the feed: what it is, why it is there, and what one can say to it.

import { bar, el, percent } from "./dom.js";
import { sideOf } from "./person.js";
import { reason } from "./words.js";

const MOST_EXPERTS = 4;

/**
 * A card.
 * @param item a place of the feed, as the service gives it
 * @param place its number, from 1
 * @param person whose feed it is
 * @param marks { fresh: Set, risen: Map }, by item
 * @param label what the ranker's probability is of
 * @param act { like, dislike, see, refuse }: called with the item, or the item and a category
 */
export function card(item, place, person, marks, label, act) {
  const id = String(item.item_id);
  const heading = el("h2", { id: `item-${place}` }, item.title);
  return el(
    "li",
    { class: marks.fresh.has(id) ? "card fresh" : "card", "data-item": id, "aria-labelledby": heading.id },
    el("div", { class: "card-head" }, el("span", { class: "place", "aria-hidden": "true" }, place), mark(id, marks)),
    heading,
    item.categories.length ? el("p", { class: "categories" }, item.categories.join(" · ")) : null,
    el("p", { class: "reason" }, ...reason(item.reason, person.past)),
    evidence(item, label),
    buttons(item, person, act),
  );
}

function mark(id, marks) {
  if (marks.fresh.has(id)) return el("span", { class: "mark" }, "New");
  if (marks.risen.has(id)) return el("span", { class: "mark soft-mark" }, `Up ${marks.risen.get(id)}`);
  return null;
}

/** The ranker's probability, the experts that spoke, and the numbers behind. */
function evidence(item, label) {
  const bars = [];
  if (item.probability !== null) {
    bars.push(el("ul", { class: "bars" }, bar(label ? `chance of “${label}”` : "chance", item.probability)));
  }
  const tasks = Object.entries(item.reason?.experts ?? {});
  if (tasks.length) bars.push(experts(tasks[0], tasks.length > 1));
  const numbers = [
    ["Score", item.score.toFixed(3)],
    ["Score of the retriever", item.retrieval_score.toFixed(3)],
    ["Chance to be shown here", item.propensity === null ? null : percent(item.propensity)],
    ...(item.reason?.because ?? []).map((one) => [`Share of “${one.title}”`, percent(one.share)]),
  ].filter(([, value]) => value !== null);
  const more = el(
    "details",
    { class: "more" },
    el("summary", {}, "In numbers"),
    el("dl", {}, ...numbers.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    ...tasks.slice(1).map((task) => experts(task, true)),
  );
  return el("div", { class: "evidence" }, ...bars, more);
}

function experts([task, shares], named) {
  const heard = Object.entries(shares)
    .sort((one, other) => other[1] - one[1])
    .filter(([, share]) => share >= 0.005)
    .slice(0, MOST_EXPERTS);
  if (!heard.length) return null;
  const head = named ? `Experts heard on “${task.replaceAll("_", " ")}”` : "Experts heard";
  return el(
    "div",
    { class: "experts" },
    el("p", { class: "label" }, head),
    el("ul", { class: "bars" }, ...heard.map(([name, share]) => bar(expert(name), share))),
  );
}

const expert = (name) => (/^\d+$/.test(name) ? `expert ${name}` : name.replaceAll("_", " "));

function buttons(item, person, act) {
  const side = sideOf(person.taste, "items", item.item_id);
  const button = (name, words, listener, pressed) =>
    el(
      "button",
      { type: "button", "data-act": name, "aria-pressed": pressed, "aria-label": `${words}: ${item.title}`, click: listener },
      words,
    );
  return el(
    "div",
    { class: "acts" },
    button("like", "Like", () => act.like(item), String(side === "liked")),
    button("dislike", "Dislike", () => act.dislike(item), String(side === "disliked")),
    button("see", "Seen it", () => act.see(item)),
    refusal(item, person, act),
  );
}

/** “Not this category”: one button where there is one, a small menu where there are more. */
function refusal(item, person, act) {
  const open = item.categories.filter((category) => sideOf(person.taste, "categories", category) !== "disliked");
  if (!open.length) return null;
  const button = (category) =>
    el(
      "button",
      { type: "button", "data-act": "refuse", "aria-label": `Not ${category}`, click: () => act.refuse(item, category) },
      `Not ${category}`,
    );
  if (open.length === 1) return button(open[0]);
  const menu = el(
    "details",
    { class: "menu", keydown: (event) => event.key === "Escape" && close(), focusout: (event) => leave(event) },
    el("summary", { "data-act": "refuse", "aria-label": `Not this category: ${item.title}` }, "Not this category"),
    el("div", { class: "menu-list" }, ...open.map(button)),
  );
  function close() {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
  function leave(event) {
    if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
  }
  return menu;
}
