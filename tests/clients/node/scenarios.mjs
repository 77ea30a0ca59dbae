// What the programs beside this one share: scenarios that run in order, the jobs that answers name, and the books.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The packages lie where the tests were told, not beside this file.
export const require = createRequire(`${process.env.SHAREMESH_TEST_CLIENTS}/`);

const [jobs, stopped] = [[], []];

// Asks, and keeps the jobs that the answer names: the client takes it in place of its own `fetch`.
export const noting = async (...request) => {
  const answer = await fetch(...request);
  for (const name of (answer.headers.get("x-sharemesh-job") ?? "").split(", ")) {
    if (name && !jobs.includes(name)) jobs.push(name);
  }
  return answer;
};

// Says that the last job is to end long before it has made so many tokens, because its client left.
export const stops = (tokens) => stopped.push({ job: jobs.at(-1), tokens });

// Returns what the consumer's ledger has as paid: calls, tokens read, tokens written, nano-credits. The last may be ahead of
// the others once a job was cancelled: what was paid ahead for it pays for the next ones, or comes back when the channel is
// closed.
export const billed = async () => {
  const node = JSON.parse(readFileSync(`${process.env.SHAREMESH_DATA}/node.json`, "utf8"));
  const headers = { authorization: `Bearer ${node.token}` };
  const page = await (await fetch(`http://${node.api}/sharemesh/v1/ledger/receipts?limit=500`, { headers })).json();
  if (page.next) throw new Error("more receipts than a page has");
  const newest = new Map();
  for (const receipt of page.receipts) if (!newest.has(receipt.channel)) newest.set(receipt.channel, receipt);
  const counts = [...newest.values()].map((one) => [one.calls, one.tokens_in, one.tokens_out, one.cumulative.nano]);
  return counts.reduce((sum, more) => sum.map((one, at) => one + more[at]), [0, 0, 0, 0]);
};

// Runs all scenarios and prints what `summary` says and what was done, for the test that started the program.
export const runAll = async (scenarios, summary) => {
  const done = [];
  for (const [name, run] of Object.entries(scenarios)) {
    await run();
    done.push(name);
  }
  if (summary) console.log(JSON.stringify(await summary()));
  console.log(JSON.stringify({ done, jobs, stopped }));
};
