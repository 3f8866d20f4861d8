// Checks docs/contract as a consumer in JavaScript would: `node check.mjs FOLDER`. Prints what is wrong; 1 is its exit.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Parser } from "@asyncapi/parser";
import Ajv2020 from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

const folder = process.argv[2];
const read = (...path) => readFileSync(join(folder, ...path), "utf8");
const ajv = addFormats(new Ajv2020({ strict: true, allErrors: true }));
for (const name of ["job", "event", "hint"]) {
  ajv.addSchema(JSON.parse(read(`${name}.schema.json`)), `${name}.schema.json`);
}
const wrong = [];

const examples = readdirSync(join(folder, "examples")).filter((name) => name !== "stream-entry.json");
for (const name of examples) {
  const schema = ajv.getSchema(name.startsWith("job.") ? "job.schema.json" : "event.schema.json");
  if (!schema(JSON.parse(read("examples", name)))) wrong.push(`${name}: ${ajv.errorsText(schema.errors)}`);
}
// The parser below checks no example of a message.
const { messages } = JSON.parse(read("asyncapi.json")).components;
for (const { name, payload, examples: entries } of Object.values(messages)) {
  const entry = ajv.compile(payload);
  if (!entries.every((each) => entry(each.payload))) wrong.push(`entry of ${name}: ${ajv.errorsText(entry.errors)}`);
}

const { diagnostics } = await new Parser().parse(read("asyncapi.json"), { source: join(folder, "asyncapi.json") });
wrong.push(...diagnostics.map((each) => `asyncapi.json: ${each.path.join(".")}: ${each.message}`));

console.log(wrong.join("\n") || `${examples.length} examples fit`);
process.exitCode = wrong.length ? 1 : 0;
