// The page of a feed: whose it is, what is shown, and what follows from what one says to it.

import { showAnswer } from "./answer.js";
import { showHistory, showTaste } from "./about.js";
import { call } from "./api.js";
import { card } from "./card.js";
import { byId, el } from "./dom.js";
import { confirmErasure } from "./erase.js";
import { keyButton } from "./key.js";
import { newcomer } from "./newcomer.js";
import { difference, LISTS, named, Person, SHOWN, sideOf, tasteWith } from "./person.js";
import { counted, origin } from "./words.js";

const LONGEST = 60;
const NOTHING_NEW = { fresh: new Set(), risen: new Map(), gone: [] };

let person = null;
let models = [];
let undo = null;
/** What is asked for happens one after the other, in the order of the clicks. */
let last = Promise.resolve();

function enqueue(work) {
  byId("feed").setAttribute("aria-busy", "true");
  last = last
    .then(() => {
      byId("error").hidden = true;
      return work();
    })
    .catch(failed)
    .finally(() => byId("feed").removeAttribute("aria-busy"));
  return last;
}

function failed(error) {
  const place = byId("error");
  place.replaceChildren(el("p", {}, error.status === undefined ? "The page failed. Load it again." : error.message));
  place.hidden = false;
  if (error.status === undefined) throw error;
}

/** Say what has changed, with a way back where there is one. */
function say(words, back = null) {
  undo = back;
  byId("said").textContent = words;
  byId("changed").hidden = !words;
  byId("undo").hidden = !back;
}

function open(id, focus = false) {
  return enqueue(async () => {
    const opened = new Person(id);
    await opened.load();
    person = opened;
    location.hash = new URLSearchParams({ user: id }).toString();
    document.title = `${named(id)} · Feedline`;
    byId("user").value = id;
    say("");
    draw();
    if (focus) byId("feed-title").focus();
  });
}

/** Do something that changes the feed, and show what it has changed. */
function change(work, words, { back = null, quiet = false } = {}) {
  const changed = person;
  return enqueue(async () => {
    const before = changed.feed.items;
    const note = await work(changed);
    if (person !== changed) return;
    const found = quiet ? NOTHING_NEW : difference(before, changed.feed.items);
    draw(found);
    say(note ?? [words, told(found)].filter(Boolean).join(" "), back);
  });
}

function told({ fresh, risen }) {
  if (!fresh.size && !risen.size) return "The feed is as it was.";
  const parts = [];
  if (fresh.size) parts.push(`${counted(fresh.size, "title")} ${fresh.size === 1 ? "is" : "are"} new`);
  if (risen.size) parts.push(`${risen.size} moved up`);
  return `${parts.join(", ")}.`;
}

function setTaste(taste, words) {
  const former = person.taste;
  const back = () => change((one) => one.setTaste(former), "Taken back.");
  return change((one) => one.setTaste(taste), words, { back });
}

function toggle(kind, entry, side, words, taken) {
  const already = sideOf(person.taste, kind, entry) === side;
  return setTaste(tasteWith(person.taste, kind, entry, already ? null : side), already ? taken : words);
}

const acts = {
  like: (item) => toggle("items", item.item_id, "liked", `You like “${item.title}”.`, `“${item.title}” was taken back.`),
  dislike: (item) =>
    toggle("items", item.item_id, "disliked", `“${item.title}” is not shown any more.`, `“${item.title}” was taken back.`),
  refuse: (_item, category) => toggle("categories", category, "disliked", `No more ${category}.`, `${category} was taken back.`),
  prefer: (category) => toggle("categories", category, "liked", `You like ${category}.`, `${category} was taken back.`),
  set: setTaste,
  see: (item) =>
    change(
      async (one) => {
        const place = one.feed.items.findIndex((each) => each.item_id === item.item_id) + 1;
        const outcome = await one.see(item, place || null, one.action(models[0]?.card.actions ?? []));
        return outcome === "ignored" ? "This model does not learn from that action, so nothing has changed." : null;
      },
      `“${item.title}” is in the history now.`,
    ),
};

/** Draw everything anew; the focus stays where it was, or goes to what has taken its place. */
function draw(found = NOTHING_NEW) {
  const held = holdFocus();
  const { feed } = person;
  byId("feed-title").textContent = named(person.id);
  byId("origin").textContent = origin(feed);
  byId("origin").classList.toggle("fell-back", feed.fallback !== null);
  const label = models.find((one) => one.variant === feed.variant)?.card.label ?? "";
  byId("feed").replaceChildren(...feed.items.map((item, place) => card(item, place + 1, person, found, label, acts)));
  byId("longer").hidden = person.k >= LONGEST || feed.items.length < person.k;
  byId("again").hidden = byId("about").hidden = false;
  if (!feed.items.length) byId("origin").textContent = "Nothing is left to show. Take something back in the taste.";
  const categories = new Set(feed.items.flatMap((item) => item.categories));
  const open = [...categories].filter((name) => !sideOf(person.taste, "categories", name)).sort();
  showTaste(person, open, acts, failed);
  showHistory(person);
  showAnswer(person, models);
  held();
}

function holdFocus() {
  const focused = document.activeElement;
  const inTaste = focused?.closest("#taste");
  const item = focused?.closest("[data-item]");
  const act = focused?.closest("[data-act]")?.dataset.act;
  if (inTaste) return () => byId("taste").querySelector("button, summary")?.focus();
  if (!item || !act) return () => {};
  const place = [...byId("feed").children].indexOf(item);
  return () => {
    const cards = [...byId("feed").children];
    const target = cards.find((one) => one.dataset.item === item.dataset.item) ?? cards[Math.min(place, cards.length - 1)];
    (target?.querySelector(`[data-act=${act}]`) ?? byId("feed-title")).focus();
  };
}

/** The feed of someone new, whenever their choices change. */
function chosen(id, items) {
  const taste = { ...Object.fromEntries(LISTS.map((list) => [list, []])), liked_items: items.map((item) => item.item_id) };
  if (person?.id === id) return setTaste(taste, `Made from ${counted(items.length, "choice")}.`);
  return enqueue(async () => {
    const made = new Person(id);
    await call("PUT", `${made.path}/taste`, taste);
    await made.load();
    person = made;
    location.hash = new URLSearchParams({ user: id }).toString();
    document.title = `${named(id)} · Feedline`;
    draw();
    say(`A first feed of ${counted(made.feed.items.length, "title")}, made from ${counted(items.length, "choice")}.`);
  });
}

async function erase() {
  const erased = person;
  if (!(await confirmErasure(named(erased.id)))) return;
  await enqueue(async () => {
    const was = await erased.erase();
    await erased.load();
    draw();
    say(was ? `${named(erased.id)} is forgotten.` : `Nothing was kept of ${named(erased.id)}.`);
  });
  byId("feed-title").focus();
}

/** What is served, and the people it offers to look at; a service need not offer any. */
async function start() {
  await enqueue(async () => {
    models = (await call("GET", "v1/model")).variants.filter((one) => !one.shadow);
  });
  if (!models.length) return;
  const user = new URLSearchParams(location.hash.slice(1)).get("user");
  if (user) await open(user);
  try {
    const { users } = await call("GET", "v1/users?limit=8");
    const button = (id) => el("button", { type: "button", class: "chip", click: () => open(id, true) }, id);
    byId("known-list").replaceChildren(...users.map((id) => el("li", {}, button(id))));
    byId("known").hidden = !users.length;
  } catch (error) {
    if (error.status === undefined) throw error;
  }
}

byId("open").addEventListener("submit", (event) => {
  event.preventDefault();
  open(byId("user").value.trim(), true);
});
byId("new").addEventListener("click", () =>
  enqueue(() =>
    newcomer({ chosen, failed, closed: (made) => (made ? byId("feed-title") : byId("new")).focus() }),
  ),
);
byId("again").addEventListener("click", () => change((one) => one.recommend(), "Asked again."));
byId("longer").addEventListener("click", () =>
  change(
    async (one) => {
      const shown = one.feed.items.length;
      one.k = Math.min(one.k + SHOWN, LONGEST);
      await one.recommend();
      return `${counted(one.feed.items.length - shown, "more title")}.`;
    },
    "",
    { quiet: true },
  ),
);
byId("undo").addEventListener("click", () => {
  undo?.();
  byId("feed-title").focus();
});
byId("erase").addEventListener("click", erase);
addEventListener("hashchange", () => {
  const user = new URLSearchParams(location.hash.slice(1)).get("user");
  if (user && user !== String(person?.id)) open(user);
});
keyButton(() => (person ? open(person.id) : start()));
start();
