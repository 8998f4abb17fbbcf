// A person as the service knows them: history, taste and feed, and what changes these.

import { call } from "./api.js";

const FIRST_NEW = 900_000_000_000_000;

export const SHOWN = 12;

/** An id that no log has, for someone new. Services whose ids are texts take it as one. */
export const newId = () => FIRST_NEW + crypto.getRandomValues(new Uint32Array(1))[0];

/** What to call the person of an id. */
export function named(id) {
  const isNew = Number(id) >= FIRST_NEW && Number(id) < FIRST_NEW + 2 ** 32;
  return isNew ? `New person ${String(id).slice(-4)}` : `Person ${id}`;
}

export const LISTS = ["liked_items", "disliked_items", "liked_categories", "disliked_categories"];

const same = (one, other) => String(one) === String(other);

/** A taste with an entry put to the end of one list and taken out of its opposite; with no list, out of both. */
export function tasteWith(taste, kind, entry, side) {
  const changed = { ...taste };
  for (const each of ["liked", "disliked"]) {
    const rest = taste[`${each}_${kind}`].filter((one) => !same(one, entry));
    changed[`${each}_${kind}`] = each === side ? [...rest, entry] : rest;
  }
  return changed;
}

/** "liked", "disliked" or null: what a taste says of an item or a category. */
export function sideOf(taste, kind, entry) {
  return ["liked", "disliked"].find((side) => taste[`${side}_${kind}`].some((one) => same(one, entry))) ?? null;
}

export class Person {
  constructor(id) {
    this.id = id;
    this.path = `v1/users/${encodeURIComponent(id)}`;
    this.k = SHOWN;
    this.titles = new Map();
  }

  /** Ask for all that is known of the person, and for the feed. */
  async load() {
    const [taste, history] = await Promise.all([
      call("GET", `${this.path}/taste`),
      call("GET", `${this.path}/history`),
      this.recommend(),
    ]);
    this.hold(taste);
    this.remember(history);
  }

  /** Ask for the feed; `waited` is what the person waits for it, milliseconds. */
  async recommend() {
    const before = performance.now();
    this.feed = await call("POST", "v1/recommend", { user_id: this.id, k: this.k, explain: true });
    this.waited = performance.now() - before;
    for (const item of this.feed.items) this.titles.set(String(item.item_id), item.title);
  }

  /** Say what the person likes and dislikes, and ask for the feed that follows. */
  async setTaste(taste) {
    this.hold(await call("PUT", `${this.path}/taste`, Object.fromEntries(LISTS.map((list) => [list, taste[list]]))));
    await this.recommend();
  }

  /** Tell that the person has seen an item; what became of it: "applied", "ignored" or "repeated". */
  async see(item, place, action) {
    const event = { user_id: this.id, item_id: item.item_id, action, position: place, request_id: this.feed.request_id };
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    event.event_id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const { outcomes } = await call("POST", "v1/events", { events: [event] });
    this.remember(await call("GET", `${this.path}/history`));
    await this.recommend();
    return outcomes[0];
  }

  /** Have the person forgotten; whether anything was kept. */
  async erase() {
    const { erased } = await call("DELETE", this.path);
    return erased;
  }

  hold(taste) {
    this.taste = taste;
    for (const [id, title] of Object.entries(taste.titles)) this.titles.set(id, title);
  }

  remember(history) {
    this.history = history.events.map((event, place) => ({ ...event, title: history.titles[place] }));
    this.past = new Map(this.history.map((event) => [String(event.item_id), event]));
  }

  title(id) {
    return this.titles.get(String(id)) ?? String(id);
  }

  /** The name the person's log has for what they do most; of a log with one action, that action. */
  action(known) {
    const counts = new Map(known.map((name) => [name, 0]));
    for (const event of this.history) counts.set(event.action, (counts.get(event.action) ?? 0) + 1);
    return [...counts].sort((one, other) => other[1] - one[1])[0]?.[0] ?? "";
  }
}

/** What is another in a feed than in the one before: new ones, those that others have let past, those that are gone. */
export function difference(before, after) {
  const ids = (items) => items.map((item) => String(item.item_id));
  const [old, now] = [ids(before), ids(after)];
  const stayed = new Set(old.filter((id) => now.includes(id)));
  const [oldOrder, nowOrder] = [old, now].map((list) => list.filter((id) => stayed.has(id)));
  const risen = new Map();
  for (const [place, id] of nowOrder.entries()) {
    const by = oldOrder.indexOf(id) - place;
    if (by > 1) risen.set(id, by);
  }
  const fresh = new Set(now.filter((id) => !stayed.has(id)));
  return { fresh, risen, gone: before.filter((item) => !stayed.has(String(item.item_id))) };
}
