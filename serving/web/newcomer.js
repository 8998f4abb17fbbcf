// Someone new: three choices from the titles, then a feed; every further choice makes it better.

import { call } from "./api.js";
import { byId, el } from "./dom.js";
import { newId } from "./person.js";
import { search } from "./search.js";
import { counted } from "./words.js";

const ENOUGH = 3;
const STARTERS = 12;

/**
 * Show the choices.
 * @param options { chosen: called with an id and the choices whenever there are enough, closed, failed }
 */
export async function newcomer({ chosen, closed, failed }) {
  const panel = byId("newcomer");
  const id = newId();
  const choices = new Map();
  // Of someone of whom nothing is known, the feed is what is popular: titles that people know.
  const popular = await call("POST", "v1/recommend", { user_id: id, k: STARTERS });
  const progress = el("p", { class: "progress", role: "status" });
  const chips = el("ul", { class: "chips", "aria-label": "Chosen" });
  const finder = search({
    label: "Look for a title",
    starters: popular.items,
    chosen: (item) => choices.has(String(item)),
    choose: toggle,
    failed,
  });
  const done = el("button", { type: "button", class: "strong", disabled: true, click: close }, "Done");
  const cancel = el("button", { type: "button", class: "quiet", click: close }, "Close");
  panel.replaceChildren(
    el("h2", { id: "newcomer-title" }, "Choose three things you like"),
    progress,
    chips,
    finder.root,
    el("div", { class: "row end" }, cancel, done),
  );
  panel.hidden = false;
  show();
  finder.field.focus();

  function toggle(item) {
    const key = String(item.item_id);
    if (!choices.delete(key)) choices.set(key, item);
    show();
    if (choices.size >= ENOUGH) chosen(id, [...choices.values()]);
  }

  function show() {
    const missing = ENOUGH - choices.size;
    progress.textContent =
      missing > 0
        ? `${choices.size} of ${ENOUGH} chosen.`
        : `${counted(choices.size, "choice")}: the feed is below. Choose on, or be done.`;
    chips.replaceChildren(
      ...[...choices.values()].map((item) =>
        el(
          "li",
          {},
          el(
            "button",
            { type: "button", class: "chip", "aria-label": `Take out ${item.title}`, click: () => remove(item) },
            item.title,
            el("span", { "aria-hidden": "true" }, "×"),
          ),
        ),
      ),
    );
    done.disabled = missing > 0;
    finder.show();
  }

  function remove(item) {
    toggle(item);
    finder.field.focus();
  }

  function close() {
    panel.hidden = true;
    panel.replaceChildren();
    closed(choices.size >= ENOUGH);
  }
}
