// The key of the service, typed in by the person, kept as long as the tab is open.

import { byId, el } from "./dom.js";

const PLACE = "feedline-key";
let asking = null;

export const key = () => sessionStorage.getItem(PLACE) ?? "";

/** Have a key typed in; whether there is another than the one that was refused. */
export function askKey(refused = "") {
  if (key() !== refused) return Promise.resolve(true);
  asking ??= ask(refused).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(refused) {
  const field = el("input", { id: "key-field", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const say = refused ? "The service does not know this key, or it has ended. Give another." : "This service wants a key.";
  const cancel = el("button", { type: "button", class: "quiet", click: () => dialog.close() }, "Not now");
  const form = el(
    "form",
    { method: "dialog", submit: () => sessionStorage.setItem(PLACE, field.value.trim()) },
    el("h2", { id: "key-title" }, "Key"),
    el("p", {}, say),
    el("label", { for: "key-field" }, "Key of the service"),
    field,
    el("p", { class: "soft" }, "It is kept in this tab only, and forgotten when the tab is closed."),
    el("div", { class: "row end" }, cancel, el("button", { class: "strong" }, "Use this key")),
  );
  const dialog = el("dialog", { "aria-labelledby": "key-title" }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(key() !== refused);
    });
  });
}

/** The button in the head of a page that changes the key. */
export function keyButton(changed) {
  byId("key").addEventListener("click", async () => {
    if (await askKey(key())) changed();
  });
}
