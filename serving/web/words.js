// What is said in words: times, reasons, where a feed comes from.

import { el } from "./dom.js";

const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const DAY = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });
const MOMENT = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const DID = {
  click: "clicked",
  buy: "bought",
  purchase: "bought",
  like: "liked",
  listen: "listened to",
  play: "played",
  rating: "rated",
  read: "read",
  review: "reviewed",
  share: "shared",
  view: "watched",
  watch: "watched",
};

/** What somebody did, as a verb: an action of the log that is not known here is told by its name. */
export function did(event) {
  const verb = DID[event.action];
  if (event.action === "rating" && event.value === null) return "watched";
  return verb ?? (event.action ? `${event.action.replaceAll("_", " ")} on` : "chose");
}

/** A value worth telling beside the verb: that of a rating. */
export const valued = (event) => (event.action === "rating" && event.value !== null ? ` ${event.value}` : "");

/** When: near ones by distance, far ones by date. */
export function when(timestamp) {
  const minutes = (timestamp - Date.now()) / 60_000;
  let told = DAY.format(timestamp);
  if (Math.abs(minutes) < 1) told = "just now";
  else if (Math.abs(minutes) < 60) told = AGO.format(Math.round(minutes), "minute");
  else if (Math.abs(minutes) < 24 * 60) told = AGO.format(Math.round(minutes / 60), "hour");
  else if (Math.abs(minutes) < 30 * 24 * 60) told = AGO.format(Math.round(minutes / 60 / 24), "day");
  return el("time", { datetime: new Date(timestamp).toISOString(), title: MOMENT.format(timestamp) }, told);
}

/** Why an item is in the feed: nodes of one or two sentences. `past`: item as text → the last event with it. */
export function reason(found, past) {
  if (!found) return ["No reason was given."];
  const sentences = [];
  const because = found.because.filter(({ share }) => share >= TELLING * found.because[0].share);
  if (because.length) {
    let before = null;
    const parts = because.map((one) => {
      const event = past.get(String(one.item_id));
      const verb = event ? did(event) : "like";
      const said = [verb === before ? "" : `you ${verb} `, el("cite", {}, one.title), event ? valued(event) : ""];
      before = verb;
      return said;
    });
    sentences.push(["Because ", ...joined(parts), "."]);
  }
  if (found.liked_category !== null) sentences.push(["You like ", el("b", {}, found.liked_category), "."]);
  if (!sentences.length) sentences.push([NOTHING[found.source] ?? "Chosen by the model."]);
  return sentences.flatMap((sentence, place) => (place ? [" ", ...sentence] : sentence));
}

/** What speaks less than this part of what speaks most is not told. */
const TELLING = 1 / 3;

const NOTHING = {
  history: "It fits all that you have chosen so far.",
  taste: "It fits what you say you like.",
  popular: "Many people choose it.",
};

/** [[a], [b], [c]] → a, b and c. */
function joined(parts) {
  return parts.flatMap((part, place) => {
    if (!place) return part;
    return [place === parts.length - 1 ? " and " : ", ", ...part];
  });
}

/** Where a feed comes from. */
export function origin(feed) {
  if (feed.fallback) return FALLBACK[feed.fallback] ?? `What is popular is shown: ${feed.fallback}.`;
  return SOURCE[feed.source];
}

const SOURCE = {
  model: "Chosen by the model, from the history and what you say you like.",
  taste: "Chosen from what you say you like; there is no history yet.",
  popularity: "What many people choose: nothing is known of this person yet.",
};

const FALLBACK = {
  deadline: "What is popular is shown: the model would not have answered in time. Try again in a moment.",
  store: "What is popular is shown: histories cannot be read at the moment. The service heals by itself.",
  overload: "What is popular is shown: the service has more to do than it can. Try again in a moment.",
};

/** 1 title, 2 titles. */
export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

export const STAGES = {
  queue: "waiting",
  state: "history",
  retrieve: "retrieval",
  features: "features",
  rank: "ranking",
  blend: "blending",
  explain: "reasons",
};

/** Milliseconds, short: 0.08, 1.2, 35. */
export const ms = (value) => `${value < 0.1 ? value.toFixed(2) : value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
