// Has the official Node client ask again by its own logic, and looks in the node's ledger what was paid: see `retries.py`
// beside this folder for the doors, and for what is done without them.

import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";

import { billed, require, runAll } from "./scenarios.mjs";

const { default: OpenAI } = require("openai");

const [baseURL, model, ...doors] = process.argv.slice(2);
// At the pace of the test's engine this takes a second.
const asked = { model, messages: [{ role: "user", content: "Why is the sky blue?" }], max_tokens: 100, seed: 7 };

// Returns a client that asks again so often, and a list of all that it will have been answered.
const asking = (base, maxRetries, hook = () => {}) => {
  const answers = [];
  const keeping = async (...request) => {
    const answer = await fetch(...request);
    answers.push(answer);
    await hook(answer);
    return answer;
  };
  return [new OpenAI({ baseURL: base, apiKey: "unused", maxRetries, fetch: keeping }), answers];
};

// Returns what an answer says of itself: calls, tokens read, tokens written, nano-credits.
const costOf = ({ usage, sharemesh }, times = 1) =>
  [1, usage.prompt_tokens, usage.completion_tokens, sharemesh[0].price_nano].map((one) => times * one);

// Checks that what is run is billed as much as `cost` says of what it answered, and returns that.
const bills = async (run, cost = ({ answer }) => costOf(answer)) => {
  const before = await billed();
  const answered = await run();
  // The ledger is read on its own time.
  for (let tries = 0; ; tries++) {
    const expected = await cost(answered);
    const seen = (await billed()).map((now, at) => now - before[at]).slice(0, expected.length);
    if (expected.every((one, at) => one === seen[at])) return answered;
    assert(tries < 1_200, `${before}: ${seen} are not ${expected}`);
    await setTimeout(50);
  }
};

// Returns an answer, the statuses of all that the client was answered until it had it, and the last one's headers.
const ask = async (base, more, options) => {
  const [client, answers] = asking(base, 30);
  const answer = await client.chat.completions.create({ ...asked, ...more }, options);
  return { answer, statuses: answers.map(({ status }) => status), headers: answers.at(-1).headers };
};

// Returns the statuses that the client was answered until it gave up.
const fails = async (more) => {
  const [client, answers] = asking(baseURL, 1);
  await assert.rejects(client.chat.completions.create({ ...asked, ...more }), OpenAI.APIError);
  return answers.map(({ status }) => status);
};

const under = (key) => ({ headers: { "Idempotency-Key": key } });

const withDoors = {
  async a_connection_that_is_cut_while_the_answer_is_made_is_paid_once_under_a_key() {
    const { answer, statuses, headers } = await bills(() => ask(doors[0], {}, under("cut in the middle")));
    // The first time nothing was answered; until the answer is there the client is told to come again.
    assert.deepEqual([statuses[0], new Set(statuses)], [409, new Set([409, 200])]);
    assert.deepEqual([headers.get("x-sharemesh-replayed"), answer.usage.completion_tokens], ["true", 100]);
  },

  async a_connection_that_is_cut_before_the_answer_comes_is_paid_once_under_a_key() {
    const { statuses, headers } = await bills(() => ask(doors[1], {}, under("cut at the end")));
    assert.deepEqual([statuses, headers.get("x-sharemesh-replayed")], [[200], "true"]);
  },

  async without_a_key_it_is_paid_again() {
    const { statuses, headers } = await bills(() => ask(doors[2]), ({ answer }) => costOf(answer, 2));
    assert.deepEqual([statuses, headers.get("x-sharemesh-replayed")], [[200], null]);
  },

  async whoever_finds_every_place_taken_comes_again_and_pays_once() {
    const [taking, taken] = asking(baseURL, 0);
    const streams = [];
    const run = async () => {
      for (let number = 0; number < 4; number++) {
        const stream = await taking.chat.completions.create({ ...asked, max_tokens: 4_000, stream: true });
        streams.push(stream);
        await stream[Symbol.asyncIterator]().next();
      }
      const [client, answers] = asking(baseURL, 20, () => streams.forEach(({ controller }) => controller.abort()));
      return { answer: await client.chat.completions.create(asked), answers };
    };
    const cost = async ({ answer }) => {
      const sum = costOf(answer).slice(0, 3);
      for (const one of taken.slice(0, 4)) {
        const job = await taking.get(`/jobs/${one.headers.get("x-sharemesh-job")}`);
        [1, job.tokens_in, job.tokens_out].forEach((more, at) => (sum[at] += more));
      }
      return sum;
    };
    const { answers } = await bills(run, cost);
    const statuses = answers.map(({ status }) => status);
    assert.deepEqual([statuses[0], new Set(statuses)], [429, new Set([429, 200])]);
    assert(Number(answers[0].headers.get("retry-after")) >= 1);
  },

  async mistakes_are_sent_once_and_cost_nothing() {
    const mistakes = async () => [
      await fails({ temperature: 9 }),
      await fails({ model: "nobody-serves-this" }),
      await fails({ max_tokens: 60_000 }),
      await fails({ provider: { only: ["11".repeat(32)] } }),
    ];
    assert.deepEqual(await bills(mistakes, () => [0, 0, 0, 0]), [[400], [404], [400], [503, 503]]);
  },

  // The last: a provider that broke off is left alone for a while.
  async what_broke_off_after_it_was_paid_is_not_sent_again() {
    const messages = [{ role: "user", content: "Break after nine tokens. [[fail=9]]" }];
    const toNine = ({ answer }) => costOf(answer).slice(0, 3);
    // As much is delivered as of an answer that was to have nine tokens.
    const whole = await bills(() => ask(baseURL, { messages, max_tokens: 9 }), toNine);
    assert.deepEqual(await bills(() => fails({ messages }), () => toNine(whole)), [502]);
  },
};

const withoutDoors = {
  async whoever_finds_nobody_comes_again_until_somebody_is_there() {
    const { statuses } = await bills(() => ask(baseURL), ({ answer }) => costOf(answer).slice(0, 3));
    assert.deepEqual([statuses[0], new Set(statuses)], [503, new Set([503, 200])]);
  },
};

await runAll(doors.length ? withDoors : withoutDoors, async () => ({ billed: (await billed()).slice(0, 3) }));
