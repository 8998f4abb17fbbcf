// The service as the page asks it: JSON over fetch, a key where one is needed, and what went wrong as a sentence.

import { askKey, key } from "./key.js";

/** What the service would not or could not do, told for a person. */
export class Refusal extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

/** The parsed answer. A service that wants a key is asked again with the one that is typed in. */
export async function call(method, path, body) {
  return parsed(await text(method, path, body));
}

/** The answer as it came. */
export async function text(method, path, body) {
  for (;;) {
    const sent = key();
    const answer = await send(method, path, body, sent);
    if (answer.ok) return answer.text();
    if (answer.status !== 401) throw new Refusal(await told(answer), answer.status);
    if (!(await askKey(sent))) throw new Refusal("This service wants a key. Give one with “Key”, above.", 401);
  }
}

async function send(method, path, body, sent) {
  const headers = {};
  if (sent) headers.authorization = `Bearer ${sent}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refusal("The service cannot be reached. See whether it runs, then try again.", 0);
  }
}

/** Ids beyond 2^53 stay what they are, as text; the service takes them so. */
function parsed(words) {
  return JSON.parse(words, (_name, value, context) =>
    Number.isInteger(value) && !Number.isSafeInteger(value) && context ? context.source : value,
  );
}

async function told(answer) {
  const wait = Number(answer.headers.get("retry-after"));
  const soon = wait > 0 ? `in ${wait} s` : "in a moment";
  const request = answer.headers.get("x-request-id");
  let detail = "";
  try {
    ({ detail } = JSON.parse(await answer.text()));
  } catch {
    // Not the service's own words: a proxy's page.
  }
  if (typeof detail !== "string") detail = "";
  switch (answer.status) {
    case 403:
      return `This key may not do that${detail ? ` (${detail})` : ""}. Give another with “Key”, above.`;
    case 429:
      return `Too many requests at once. Try again ${soon}.`;
    case 503:
      return `The service is busy or starting${detail ? ` (${detail})` : ""}. Try again ${soon}.`;
    default:
      if (answer.status < 500 && detail) return `The service refused: ${detail}`;
      return `The service failed (${answer.status})${request ? `; its log tells why under ${request}` : ""}. Try again.`;
  }
}
