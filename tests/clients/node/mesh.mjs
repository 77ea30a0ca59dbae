// Drives a node with the official Node client, as a program does that has changed its base URL only.

import assert from "node:assert/strict";

import { noting, require, runAll, stops } from "./scenarios.mjs";

const { default: OpenAI } = require("openai");
const { zodResponseFormat } = require("openai/helpers/zod");
const { z } = require("zod");

const [baseURL, model, wrongKey] = process.argv.slice(2);
const user = [{ role: "user", content: "Why is the sky blue?" }];
const told = (text) => [{ role: "user", content: `[[say=${text}]]` }];
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, fetch: noting });
const ask = (more, options) =>
  client.chat.completions.create({ model, messages: user, max_tokens: 24, seed: 7, ...more }, options);

const scenarios = {
  async models_are_listed_and_retrieved() {
    const listed = [];
    for await (const offered of client.models.list()) listed.push(offered.id);
    assert(listed.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async a_chat_is_answered_and_paid() {
    const { data, response } = await ask().withResponse();
    assert.equal(data.choices[0].finish_reason, "length");
    assert.equal(data.usage.completion_tokens, 24);
    assert(Number(response.headers.get("x-sharemesh-price")) > 0);
    assert.equal(data._request_id.length, 32);
  },

  async a_stream_says_the_same_and_its_usage_last() {
    const whole = (await ask()).choices[0].message.content;
    const chunks = [];
    for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
    assert.equal(chunks[0].choices[0].delta.role, "assistant");
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), whole);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.completion_tokens, 24);
  },

  async the_streaming_helper_understands_the_stream() {
    const stream = client.chat.completions.stream({ model, messages: user, max_tokens: 24, seed: 7 });
    let deltas = "";
    stream.on("content.delta", ({ delta }) => (deltas += delta));
    const final = await stream.finalChatCompletion();
    assert.equal(final.choices[0].message.content, deltas);
    assert(deltas.length > 0);
  },

  async an_answer_has_the_form_that_was_asked_for() {
    const person = z.object({ name: z.string(), age: z.number().int() });
    const response_format = zodResponseFormat(person, "person");
    const answer = await client.chat.completions.parse({ model, messages: user, max_tokens: 100, response_format });
    assert.equal(typeof answer.choices[0].message.parsed.name, "string");
  },

  async the_helper_runs_the_tools_that_are_called() {
    const asked = [];
    const weather = {
      name: "weather",
      parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
      parse: JSON.parse,
      function: ({ place }) => (asked.push(place), "mild"),
    };
    const messages = told('<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>');
    const tools = [{ type: "function", function: weather }];
    // The fake model answers the same again when it has the result, so the helper is told to ask once.
    const options = { maxChatCompletions: 1 };
    const runner = client.chat.completions.runTools({ model, messages, max_tokens: 300, tools }, options);
    await runner.done();
    assert.deepEqual(asked, ["Rome"]);
    assert.equal(runner.messages.at(-1).role, "tool");
  },

  async several_choices_and_log_probabilities() {
    const { choices } = await ask({ n: 3, logprobs: true, top_logprobs: 2 });
    assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2]);
    for (const { message, logprobs } of choices) {
      assert.equal(logprobs.content.map((token) => token.token).join(""), message.content);
    }
  },

  async completions_are_answered_whole_and_streamed() {
    const asked = { model, prompt: "Once", max_tokens: 8, seed: 1 };
    const whole = (await client.completions.create(asked)).choices[0].text;
    let parts = "";
    for await (const part of await client.completions.create({ ...asked, stream: true })) parts += part.choices[0].text;
    assert.equal(parts, whole);
  },

  async stop_strings_end_the_answer() {
    const words = (await ask()).choices[0].message.content.trim().split(" ");
    const { message, finish_reason } = (await ask({ stop: [words[3]] })).choices[0];
    assert.deepEqual([message.content.trim().split(" "), finish_reason], [words.slice(0, 3), "stop"]);
  },

  async a_streamed_call_of_a_tool_comes_part_by_part() {
    const call = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>';
    const parameters = { type: "object", properties: { place: { type: "string" } }, required: ["place"] };
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const asked = { model, messages: told(`Hm. ${call}`), max_tokens: 300, tools };
    const { message, finish_reason } = (await client.chat.completions.stream(asked).finalChatCompletion()).choices[0];
    assert.deepEqual([message.content, finish_reason], ["Hm. ", "tool_calls"]);
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { place: "Rome" });
    const results = message.tool_calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "mild" }));
    const after = (await ask({ messages: [...user, message, ...results], tools, tool_choice: "none" })).choices[0];
    assert(after.message.content && !after.message.tool_calls);
  },

  async a_response_is_answered_whole_and_event_by_event() {
    const asked = { model, input: user, instructions: "Be brief.", max_output_tokens: 24 };
    const whole = await client.responses.create({ ...asked, temperature: 0 });
    assert.equal(whole.status, "incomplete");
    assert.equal(whole.usage.output_tokens, 24);
    const stream = client.responses.stream(asked);
    let text = "";
    stream.on("response.output_text.delta", ({ delta }) => (text += delta));
    const final = await stream.finalResponse();
    assert.deepEqual([final.output_text, final.status], [text, "incomplete"]);
    assert(text.length > 0);
  },

  async a_response_calls_tools() {
    const parameters = { type: "object", properties: { place: { type: "string" } }, required: ["place"] };
    const tools = [{ type: "function", name: "weather", parameters }];
    const input = told('<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>');
    const answer = await client.responses.create({ model, input, tools, max_output_tokens: 300 });
    const [call] = answer.output;
    assert.deepEqual([call.type, call.name, JSON.parse(call.arguments)], ["function_call", "weather", { place: "Rome" }]);
    const result = { type: "function_call_output", call_id: call.call_id, output: "mild" };
    const items = [...user, ...answer.output, result];
    const asked = { model, input: items, tools, tool_choice: "none", max_output_tokens: 8 };
    assert((await client.responses.create(asked)).output_text);
  },

  async mistakes_raise_the_exceptions_that_programs_expect() {
    const refused = async (kind, more) => {
      const error = await ask(more).then(() => assert.fail("it was not refused"), (error) => error);
      assert(error instanceof kind, error);
      return error;
    };
    assert.equal((await refused(OpenAI.BadRequestError, { temperature: 3 })).param, "temperature");
    assert.equal((await refused(OpenAI.NotFoundError, { model: "nobody-serves-this" })).code, "model_not_found");
    const wrong = new OpenAI({ baseURL, apiKey: wrongKey, maxRetries: 0 });
    await assert.rejects(async () => await wrong.models.list(), OpenAI.AuthenticationError);
  },

  async a_stream_that_is_aborted_stops() {
    const stream = await ask({ stream: true, max_tokens: 4_000 });
    stops(4_000);
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    assert(stream.controller.signal.aborted);
  },
};

await runAll(scenarios);
