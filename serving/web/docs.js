// The page of the API: what /openapi.json says, for people, with a way to try it.

import { call, text } from "./api.js";
import { byId, el } from "./dom.js";
import { keyButton } from "./key.js";
import { exampleOf, fieldsOf, typeOf } from "./schema.js";

async function start() {
  try {
    byId("error").hidden = true;
    draw(await call("GET", "openapi.json"));
  } catch (error) {
    byId("error").replaceChildren(el("p", {}, error.message));
    byId("error").hidden = false;
  }
}

function draw(document) {
  const groups = new Map();
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const [method, described] of Object.entries(methods)) {
      const tag = described.tags?.[0] ?? "service";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(method, path, described, document));
    }
  }
  byId("operations").replaceChildren(
    ...[...groups].map(([tag, operations]) => el("section", {}, el("h2", {}, tag), ...operations)),
  );
}

/** One operation; what is inside is made when it is opened. */
function operation(method, path, described, document) {
  const inside = el("div", { class: "inside" });
  const open = () => inside.childElementCount || inside.append(...detail(method, path, described, document));
  return el(
    "details",
    { class: "operation", toggle: open },
    el(
      "summary",
      {},
      el("span", { class: `method ${method}` }, method.toUpperCase()),
      el("code", { class: "path" }, path),
      el("span", { class: "soft" }, (described.description ?? described.summary ?? "").split("\n")[0]),
    ),
    inside,
  );
}

function detail(method, path, described, document) {
  const parameters = described.parameters ?? [];
  const body = described.requestBody?.content["application/json"]?.schema;
  const answered = Object.entries(described.responses).filter(([status]) => status < 300);
  const schema = answered[0]?.[1].content?.["application/json"]?.schema;
  const refusals = Object.entries(described.responses).filter(([status]) => status >= 300);
  return [
    parameters.length ? part("Parameters", el("ul", { class: "fields" }, ...parameters.map((one) => parameter(one, document)))) : null,
    body ? part("Body", fields(body, document)) : null,
    schema ? part("Answer", fields(schema, document)) : null,
    refusals.length
      ? part("Refusals", el("ul", { class: "fields" }, ...refusals.map(([status, one]) => field(status, "", one.description))))
      : null,
    part("Try it", trial(method, path, parameters, body, document)),
  ].filter(Boolean);
}

const part = (title, ...children) => el("section", {}, el("h3", {}, title), ...children);

const parameter = (one, document) =>
  field(one.name, `${typeOf(one.schema, document)}${one.required ? "" : ", optional"}`, one.description ?? one.schema.description);

function field(name, type, says, inner = null) {
  return el("li", {}, el("span", {}, el("code", {}, name)), el("span", {}, says ?? "", el("span", { class: "type" }, type)), inner);
}

function fields(schema, document) {
  const found = fieldsOf(schema, document);
  if (!found.length) return el("p", { class: "soft" }, typeOf(schema, document));
  return el(
    "ul",
    { class: "fields" },
    ...found.map(({ name, type, says, inner }) => field(name, type, says, inner ? fields(inner, document) : null)),
  );
}

function trial(method, path, parameters, body, document) {
  const inputs = parameters
    .filter((one) => one.in !== "header")
    .map((one) => {
      const input = el("input", { autocomplete: "off", required: one.required, value: one.schema.default ?? "" });
      return { ...one, input };
    });
  const area = body ? el("textarea", { spellcheck: "false" }) : null;
  if (area) area.value = JSON.stringify(exampleOf(body, document), null, 2);
  const result = el("pre", { class: "result", hidden: true, tabindex: "0", role: "status" });
  const send = async (event) => {
    event.preventDefault();
    result.hidden = false;
    result.textContent = "…";
    try {
      const answer = await text(method.toUpperCase(), filled(path, inputs), area ? JSON.parse(area.value) : undefined);
      result.textContent = pretty(answer);
    } catch (error) {
      result.textContent = error instanceof SyntaxError ? `The body is no JSON: ${error.message}.` : error.message;
    }
  };
  return el(
    "form",
    { class: "try", submit: send },
    inputs.length ? el("div", { class: "row" }, ...inputs.map((one) => el("label", { class: "grow" }, el("span", { class: "label" }, one.name), one.input))) : null,
    area ? el("label", {}, el("span", { class: "label" }, "Body"), area) : null,
    el("div", { class: "row" }, el("button", { class: "strong" }, "Send")),
    result,
  );
}

function filled(path, inputs) {
  let address = path.replace(/^\//, "");
  const query = new URLSearchParams();
  for (const { name, in: place, input } of inputs) {
    if (place === "path") address = address.replace(`{${name}}`, encodeURIComponent(input.value));
    else if (input.value !== "") query.set(name, input.value);
  }
  return query.size ? `${address}?${query}` : address;
}

function pretty(answer) {
  try {
    return JSON.stringify(JSON.parse(answer), null, 2);
  } catch {
    return answer;
  }
}

keyButton(start);
start();
