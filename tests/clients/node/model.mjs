// Asks real models through a node with the official Node client.

import assert from "node:assert/strict";

import { noting, require, runAll, stops } from "./scenarios.mjs";

const { default: OpenAI } = require("openai");
const { zodResponseFormat, zodTextFormat } = require("openai/helpers/zod");
const { z } = require("zod");

const [baseURL, model, vectors] = process.argv.slice(2);
const user = [{ role: "user", content: "Why is the sky blue?" }];
const wanted = [{ role: "user", content: "How is the weather in Paris?" }];
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, fetch: noting });
const asked = { model, messages: user, max_tokens: 12, temperature: 0 };
const ask = (more) => client.chat.completions.create({ ...asked, ...more });
const read = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};
const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
const near = (left, right) => left.length === right.length && left.every((one, at) => Math.abs(one - right[at]) < 1e-5);
// The tokens by which this model ends an answer.
const goesOn = { 0: -100, 2: -100 };

const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 40 } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { name: "weather", description: "Says how the weather is in a city.", parameters };
const city = z.object({ name: z.string().max(12), inhabitants: z.number().int().min(0).max(9_999_999) });

await runAll({
  async a_stream_says_what_a_whole_answer_says_and_its_usage() {
    const whole = await ask();
    const chunks = await read(await ask({ stream: true, stream_options: { include_usage: true } }));
    assert.equal(textOf(chunks), whole.choices[0].message.content);
    assert.equal(chunks.at(-2).choices[0].finish_reason, "length");
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.deepEqual(chunks.at(-1).usage, whole.usage);
    assert.equal(whole.usage.completion_tokens, 12);
  },

  async probabilities_are_those_of_the_tokens_that_were_taken() {
    const { message, logprobs } = (await ask({ logprobs: true, top_logprobs: 3 })).choices[0];
    assert.equal(logprobs.content.map(({ token }) => token).join(""), message.content);
    for (const { token, top_logprobs } of logprobs.content) {
      assert.equal(top_logprobs.length, 3);
      assert.equal(top_logprobs[0].token, token);
      assert(top_logprobs.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0) <= 1.0001);
    }
  },

  async a_stop_string_ends_the_answer_before_it() {
    const whole = (await ask({ max_tokens: 24 })).choices[0].message.content;
    const stop = whole.trim().split(/\s+/)[5];
    const { message, finish_reason } = (await ask({ max_tokens: 24, stop })).choices[0];
    assert.deepEqual([message.content, finish_reason], [whole.slice(0, whole.indexOf(stop)), "stop"]);
  },

  async several_choices_are_what_their_seeds_make() {
    const more = { temperature: 1, max_tokens: 8 };
    const { choices, usage } = await ask({ n: 2, seed: 70, ...more });
    const texts = choices.map(({ message }) => message.content);
    assert.notEqual(texts[0], texts[1]);
    assert.equal(usage.completion_tokens, 16);
    for (const index of [0, 1]) {
      assert.equal((await ask({ seed: 70 + index, ...more })).choices[0].message.content, texts[index]);
    }
  },

  async an_answer_has_the_form_that_was_asked_for() {
    const messages = [{ role: "user", content: "Tell me about Paris." }];
    const response_format = zodResponseFormat(city, "city");
    for (const temperature of [0, 1.8]) {
      const more = { model, messages, temperature, seed: 3, max_tokens: 64, response_format };
      const { message, finish_reason } = (await client.chat.completions.parse(more)).choices[0];
      assert.deepEqual(Object.keys(city.parse(message.parsed)), ["name", "inhabitants"]);
      assert.equal(finish_reason, "stop");
    }
    const more = { model, input: messages, max_output_tokens: 64, text: { format: zodTextFormat(city, "city") } };
    city.parse((await client.responses.parse(more)).output_parsed);
  },

  async a_tool_is_called_and_its_result_taken() {
    const tools = [{ type: "function", function: weather }];
    const more = { messages: wanted, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 64 };
    const { message, finish_reason } = (await ask(more)).choices[0];
    const [call] = message.tool_calls;
    assert.deepEqual([finish_reason, call.function.name], ["tool_calls", "weather"]);
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);
    const streamed = await client.chat.completions.stream({ ...asked, ...more }).finalChatCompletion();
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
    const result = { role: "tool", tool_call_id: call.id, content: "Sunny, 20 degrees." };
    const after = await ask({ messages: [...wanted, message, result], tools, tool_choice: "none" });
    assert(after.choices[0].message.content && !after.choices[0].message.tool_calls);
  },

  async a_text_is_continued_whole_and_streamed() {
    const prompt = { model, prompt: "One, two, three,", max_tokens: 8, temperature: 0 };
    const whole = (await client.completions.create(prompt)).choices[0].text;
    const parts = await read(await client.completions.create({ ...prompt, stream: true }));
    assert.match(whole, /four/);
    assert.equal(parts.map(({ choices }) => choices[0].text).join(""), whole);
  },

  async a_response_is_answered_event_by_event_and_calls_a_tool() {
    const more = { model, input: user, max_output_tokens: 12, temperature: 0 };
    const whole = await client.responses.create(more);
    const events = await read(await client.responses.create({ ...more, stream: true }));
    const deltas = events.filter(({ type }) => type === "response.output_text.delta");
    assert.equal(deltas.map(({ delta }) => delta).join(""), whole.output_text);
    assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
    assert.deepEqual(events.at(-1).response.usage, whole.usage);
    const tools = [{ type: "function", ...weather }];
    const called = { ...more, input: wanted, tools, tool_choice: "required", max_output_tokens: 64 };
    const final = await client.responses.stream({ ...called, parallel_tool_calls: false }).finalResponse();
    assert.deepEqual([final.status, final.output[0].name], ["completed", "weather"]);
    assert.deepEqual(Object.keys(JSON.parse(final.output[0].arguments)), ["city"]);
  },

  async vectors_are_the_same_as_floats_and_in_base64() {
    const input = ["The sky is blue.", "He drove to the stadium."];
    // The client asks for base64 by itself, and turns it back.
    const { data, usage } = await client.embeddings.create({ model: vectors, input });
    const floats = await client.embeddings.create({ model: vectors, input, encoding_format: "float" });
    assert.equal(data[0].embedding.length, 384);
    for (const index of [0, 1]) assert(near(data[index].embedding, floats.data[index].embedding));
    assert(!near(data[0].embedding, data[1].embedding));
    assert(usage.prompt_tokens > 0 && usage.prompt_tokens === floats.usage.prompt_tokens);
  },

  async what_the_model_cannot_read_is_refused() {
    const messages = [{ role: "user", content: "word ".repeat(20_000) }];
    for (const stream of [false, true]) {
      await assert.rejects(ask({ messages, stream }), { status: 400, code: "context_length_exceeded" });
    }
  },

  async whatever_is_aborted_stops() {
    const chat = await ask({ max_tokens: 1_000, logit_bias: goesOn, stream: true });
    stops(1_000);
    for await (const chunk of chat) if (chunk.choices[0].delta.content) break;
    const more = { model, input: user, max_output_tokens: 1_000, temperature: 0, stream: true };
    const events = await client.responses.create(more);
    stops(1_000);
    for await (const event of events) if (event.type === "response.output_text.delta") events.controller.abort();
  },
});
