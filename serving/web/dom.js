// Elements made of data. Text becomes a text node and nothing else: no data can be read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; a property that is a function listens, `class` and others are attributes, null ones are left out. */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A labelled share of a whole, from 0 to 1. */
export function bar(label, share, told = percent(share)) {
  const fill = el("span", { class: "fill" });
  fill.style.setProperty("--share", `${Math.min(Math.max(share, 0), 1) * 100}%`);
  return el(
    "li",
    { class: "bar" },
    el("span", { class: "bar-label" }, label),
    el("span", { class: "track", "aria-hidden": "true" }, fill),
    el("span", { class: "bar-value" }, told),
  );
}

/** A share in words: 0.123 → 12%. */
export function percent(share) {
  return `${share > 0 && share < 0.01 ? "<1" : Math.round(share * 100)}%`;
}

export const byId = (id) => document.getElementById(id);
