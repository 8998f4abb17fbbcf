// Erasure is asked for twice.

import { el } from "./dom.js";

/** Whether the person means it. */
export function confirmErasure(name) {
  let meant = false;
  const cancel = el("button", { type: "button", class: "quiet", autofocus: true, click: () => dialog.close() }, "Keep");
  const go = el(
    "button",
    {
      type: "button",
      class: "danger",
      click: () => {
        meant = true;
        dialog.close();
      },
    },
    "Erase for good",
  );
  const dialog = el(
    "dialog",
    { "aria-labelledby": "sure-title", "aria-describedby": "sure-text" },
    el("h2", { id: "sure-title" }, `Forget ${name}?`),
    el("p", { id: "sure-text" }, "History, taste and counters are erased from the store. Nobody can bring them back."),
    el("div", { class: "row end" }, cancel, go),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(meant);
    });
  });
}
