// What is known of a person: what they say they like, and what they did.

import { byId, el } from "./dom.js";
import { tasteWith } from "./person.js";
import { search } from "./search.js";
import { counted, did, valued, when } from "./words.js";

const RECENT = 8;
const HEADS = {
  liked_items: "Likes",
  liked_categories: "Likes all of",
  disliked_items: "Dislikes",
  disliked_categories: "Wants no",
};

/** The taste, each entry of which can be taken back, and a search to add to it. */
export function showTaste(person, categories, act, failed) {
  const lists = Object.entries(HEADS)
    .filter(([list]) => person.taste[list].length)
    .map(([list, head]) => tasteList(person, list, head, act));
  const finder = search({
    label: "Add a title you like",
    chosen: (item) => person.taste.liked_items.some((one) => String(one) === String(item)),
    choose: (item) => act.like(item),
    failed,
  });
  const nodes = lists.length ? lists : [el("p", { class: "soft" }, "Nothing was said yet. Like or dislike a title, and the feed follows.")];
  byId("taste").replaceChildren(...nodes, el("details", { class: "more" }, el("summary", {}, "Say more"), finder.root, categoryField(categories, act)));
}

function tasteList(person, list, head, act) {
  const kind = list.split("_")[1];
  const chips = person.taste[list].toReversed().map((entry) => {
    const name = kind === "items" ? person.title(entry) : entry;
    const taken = () => act.set(tasteWith(person.taste, kind, entry, null), `“${name}” was taken back.`);
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", class: "chip", "aria-label": `Take back: ${head.toLowerCase()} ${name}`, click: taken },
        name,
        el("span", { "aria-hidden": "true" }, "×"),
      ),
    );
  });
  return el("div", {}, el("p", { class: "label" }, head), el("ul", { class: "chips", "aria-label": head }, ...chips));
}

function categoryField(categories, act) {
  if (!categories.length) return null;
  const field = el("select", {}, el("option", { value: "" }, "Choose …"), ...categories.map((name) => el("option", {}, name)));
  field.addEventListener("change", () => field.value && act.prefer(field.value));
  return el("label", {}, el("span", { class: "label" }, "Add a category you like"), field);
}

/** The history, latest first; all of it where it is asked for. */
export function showHistory(person, whole = false) {
  const place = byId("history");
  const events = person.history.toReversed();
  if (!events.length) {
    place.replaceChildren(el("p", { class: "soft" }, "Nothing yet."));
    return;
  }
  const shown = whole ? events : events.slice(0, RECENT);
  const list = el(
    "ol",
    { class: "history" },
    ...shown.map((event) =>
      el(
        "li",
        {},
        el("span", { class: "history-title" }, event.title),
        el("span", { class: "soft" }, `${did(event)}${valued(event)} · `, when(event.timestamp)),
      ),
    ),
  );
  const nodes = [el("p", { class: "soft" }, `${counted(events.length, "event")} kept, the latest first.`), list];
  if (events.length > RECENT) {
    const words = whole ? "Show the latest" : `Show all ${events.length}`;
    const turn = () => {
      showHistory(person, !whole);
      place.querySelector("button").focus();
    };
    nodes.push(el("button", { type: "button", class: "quiet", "aria-expanded": String(whole), click: turn }, words));
  }
  place.replaceChildren(...nodes);
}
