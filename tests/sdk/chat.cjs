// The official npm client, given only what `tollway up` printed. Run by test_node_client.py, or by hand:
//   TOLLWAY_QUICKSTART=… TOLLWAY_NODE_PACKAGES=<folder with node_modules> node --test tests/sdk/chat.cjs
"use strict";

const assert = require("node:assert/strict");
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const { join } = require("node:path");
const { test } = require("node:test");

// The packages are in the cache, not beside this file.
const packages = createRequire(join(process.env.TOLLWAY_NODE_PACKAGES, "package.json"));
const { OpenAI } = packages("openai");

const quickstart = JSON.parse(readFileSync(process.env.TOLLWAY_QUICKSTART, "utf8"));
const { model } = quickstart;
const messages = [{ role: "user", content: "Say hello in one short sentence." }];

function client(apiKey = quickstart.api_key) {
  const url = quickstart.api_url.replace(/\/+$/, "");
  const baseURL = url.endsWith("/v1") ? url : `${url}/v1`;
  return new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
}

test("an answer has text, tokens and a finish reason", async () => {
  const answer = await client().chat.completions.create({ model, messages });
  assert.ok(answer.choices[0].message.content.trim());
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("a stream brings the text in chunks and ends with a reason", async () => {
  let text = "";
  const reasons = [];
  for await (const chunk of await client().chat.completions.create({ model, messages, stream: true })) {
    text += chunk.choices[0].delta.content ?? "";
    if (chunk.choices[0].finish_reason) reasons.push(chunk.choices[0].finish_reason);
  }
  assert.ok(text.trim());
  assert.equal(reasons.length, 1);
});

test("a stream that asks for usage ends with it", async () => {
  let last;
  const options = { model, messages, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client().chat.completions.create(options)) last = chunk;
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
});

test("the models list names the model", async () => {
  const ids = [];
  for await (const entry of client().models.list()) ids.push(entry.id);
  assert.ok(ids.includes(model), `${model} is not among ${ids}`);
});

test("a wrong key is an authentication error", async () => {
  const attempt = client("sk-tw-v1-notavalidkey").chat.completions.create({ model, messages });
  await assert.rejects(attempt, (error) => error instanceof OpenAI.AuthenticationError && error.status === 401);
});

test("an unknown model is not found and the close match is named", async () => {
  const misspelt = `${model.slice(0, -1)}zz`;
  const attempt = client().chat.completions.create({ model: misspelt, messages });
  await assert.rejects(attempt, (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    assert.ok(error.message.includes(model), `\`${model}\` is not named in: ${error.message}`);
    return true;
  });
});
