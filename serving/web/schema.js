// JSON Schema in words, and an example of it.

const resolved = (schema, document) =>
  schema?.$ref ? { ...document.components.schemas[schema.$ref.split("/").at(-1)], ...schema, $ref: undefined } : (schema ?? {});

/** What a value is: number, text, list of …, with its limits. */
export function typeOf(given, document) {
  const schema = resolved(given, document);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map((one) => typeOf(one, document)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  switch (schema.type) {
    case "array":
      return `list of ${typeOf(schema.items, document)}${limits(schema.minItems, schema.maxItems)}`;
    case "object":
      return schema.additionalProperties instanceof Object ? `values that are ${typeOf(schema.additionalProperties, document)}` : "object";
    case "string":
      return `text${limits(schema.minLength, schema.maxLength)}`;
    case "integer":
      return `whole number${limits(schema.minimum, schema.maximum)}`;
    case "number":
      return `number${limits(schema.minimum, schema.maximum)}`;
    case "boolean":
      return "true or false";
    default:
      return schema.type ?? "anything";
  }
}

/** Limits that are worth telling; those of 64 bits are not. */
function limits(low, high) {
  const said = (value) => value !== undefined && Math.abs(value) < 1e15;
  if (said(low) && said(high)) return `, ${low} to ${high.toLocaleString("en")}`;
  if (said(high)) return `, at most ${high.toLocaleString("en")}`;
  return said(low) && low > 0 ? `, at least ${low}` : "";
}

/** The fields of an object: name, type, what it says, and the schema of what is inside. */
export function fieldsOf(given, document) {
  const schema = resolved(given, document);
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const own = resolved(field, document);
    const inner = [own, own.items, ...(own.anyOf ?? [])].find((one) => one && resolved(one, document).properties);
    const usual = own.default === undefined || own.default === null ? "optional" : `${JSON.stringify(own.default)} if not given`;
    const type = `${typeOf(field, document)}${required.has(name) ? "" : `, ${usual}`}`;
    return { name, type, says: own.description ?? "", inner };
  });
}

/** A value of a schema: what must be given, and what is given if nothing is said. */
export function exampleOf(given, document) {
  const schema = resolved(given, document);
  if (schema.default !== undefined) return schema.default;
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return exampleOf(choices[0], document);
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return schema.enum[0];
  switch (schema.type) {
    case "array":
      return [exampleOf(schema.items, document)];
    case "object": {
      const required = new Set(schema.required ?? Object.keys(schema.properties ?? {}));
      const told = Object.entries(schema.properties ?? {}).filter(([name]) => required.has(name));
      return Object.fromEntries(told.map(([name, field]) => [name, exampleOf(field, document)]));
    }
    case "integer":
      return Math.max(1, Number.isSafeInteger(schema.minimum) ? schema.minimum : 1);
    case "number":
      return 1;
    case "boolean":
      return false;
    default:
      return "";
  }
}
