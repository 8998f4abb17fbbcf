// Titles of the catalogue to choose from: a field to look in, and what was found as buttons that stay pressed.

import { call } from "./api.js";
import { el } from "./dom.js";

const LIMIT = 12;
const PAUSE = 150;

/**
 * A search for titles.
 * @param options { label, starters: items to show before anything is looked for, chosen: id → boolean,
 *   choose: called with an item, failed: called with an error }
 * @returns { root, field, show }: the element, its field, and a function that draws what is chosen anew
 */
export function search({ label, starters = [], chosen, choose, failed }) {
  let found = starters;
  let timer = 0;
  let asked = 0;
  const results = el("ul", { class: "results" });
  const say = el("p", { class: "soft", role: "status" });
  const field = el("input", { type: "search", autocomplete: "off", spellcheck: "false", maxlength: "200", input: later });
  const root = el("div", { class: "search" }, el("label", {}, el("span", { class: "label" }, label), field), say, results);

  function later() {
    clearTimeout(timer);
    timer = setTimeout(look, PAUSE);
  }

  async function look() {
    const query = field.value.trim();
    const number = ++asked;
    try {
      const items = query ? (await call("GET", `v1/items?${new URLSearchParams({ query, limit: LIMIT })}`)).items : starters;
      if (number !== asked) return;
      found = items;
      say.textContent = query && !items.length ? `No title has “${query}”.` : "";
      show();
    } catch (error) {
      failed(error);
    }
  }

  function show() {
    const focused = document.activeElement?.closest("[data-choice]")?.dataset.choice;
    results.replaceChildren(...found.map(choice));
    if (focused !== undefined) {
      [...results.querySelectorAll("[data-choice]")].find((one) => one.dataset.choice === focused)?.focus();
    }
  }

  function choice(item) {
    const pressed = String(chosen(item.item_id));
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", class: "choice", "data-choice": item.item_id, "aria-pressed": pressed, click: () => choose(item) },
        el("span", { class: "choice-title" }, item.title),
        el("span", { class: "soft" }, item.categories.slice(0, 3).join(" · ")),
      ),
    );
  }

  show();
  return { root, field, show };
}
