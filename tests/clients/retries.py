"""Has the official Python client ask again by its own logic, and looks in the node's ledger what was paid.

The first connection that is made through each of the doors is cut: at the first door while the answer is being made, at
the others when it is there and nothing of it was passed on. Without doors, nobody serves the model for a while.
"""

import json
import sys
import time

import openai
from openai import OpenAI
from scenarios import billed, end, scenario

BASE, MODEL, *DOORS = sys.argv[1:]
# At the pace of the test's engine this takes a second.
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 100, "seed": 7}


def asking(base, retries, *hooks):
    """Returns a client that asks again so often, and a list of all that it will have been answered."""
    answers = []
    http = openai.DefaultHttpxClient(event_hooks={"response": [answers.append, *hooks]})
    return OpenAI(base_url=base, api_key="unused", max_retries=retries, http_client=http), answers


def cost_of(answer, times=1):
    """Returns what an answer says of itself: calls, tokens read, tokens written, nano-credits."""
    usage, price = answer.usage, answer.sharemesh[0]["price_nano"]
    return tuple(times * one for one in (1, usage.prompt_tokens, usage.completion_tokens, price))


def bills(run, cost=lambda answered: cost_of(answered[0])):
    """Checks that what is run is billed as much as `cost` says of what it answered, and returns that."""
    before = billed()
    answered = run()
    # The ledger is read on its own time.
    deadline = time.monotonic() + 60
    while True:
        expected = cost(answered)
        seen = tuple(now - then for now, then in zip(billed(), before))[: len(expected)]
        if seen == expected:
            return answered
        assert time.monotonic() < deadline, (before, seen, expected)
        time.sleep(0.05)


def ask(base=BASE, retries=10, **more):
    """Returns an answer, and the statuses of all that the client was answered until it had it."""
    client, answers = asking(base, retries)
    answer = client.chat.completions.create(**{**ASKED, **more})
    return answer, [one.status_code for one in answers], answers[-1].headers


def fails(retries=1, **more):
    """Returns the statuses that the client was answered until it gave up."""
    client, answers = asking(BASE, retries)
    try:
        client.chat.completions.create(**{**ASKED, **more})
    except openai.APIStatusError:
        return [one.status_code for one in answers]
    raise AssertionError("it did not fail")


def a_connection_that_is_cut_while_the_answer_is_made_is_paid_once_under_a_key():
    key = {"Idempotency-Key": "cut in the middle"}
    answer, statuses, headers = bills(lambda: ask(DOORS[0], extra_headers=key))
    # The first time nothing was answered; until the answer is there the client is told to come again.
    assert statuses[0] == 409 and set(statuses) == {409, 200}, statuses
    assert headers["x-sharemesh-replayed"] == "true" and answer.usage.completion_tokens == 100


def a_connection_that_is_cut_before_the_answer_comes_is_paid_once_under_a_key():
    key = {"Idempotency-Key": "cut at the end"}
    answer, statuses, headers = bills(lambda: ask(DOORS[1], extra_headers=key))
    assert statuses == [200] and headers["x-sharemesh-replayed"] == "true"
    assert answer.usage.completion_tokens == 100


def without_a_key_it_is_paid_again():
    _, statuses, headers = bills(lambda: ask(DOORS[2]), lambda answered: cost_of(answered[0], 2))
    assert statuses == [200] and "x-sharemesh-replayed" not in headers


def whoever_finds_every_place_taken_comes_again_and_pays_once():
    taking, taken = asking(BASE, 0)
    streams = []

    def let_go(_):
        for stream in streams:
            stream.close()

    def all_of_it():
        for _ in range(4):
            streams.append(taking.chat.completions.create(**{**ASKED, "max_tokens": 4_000}, stream=True))
            next(streams[-1])
        client, answers = asking(BASE, 20, let_go)
        return client.chat.completions.create(**ASKED), answers

    def cost(answered):
        jobs = [taking.get(f"/jobs/{one.headers['x-sharemesh-job']}", cast_to=object) for one in taken[:4]]
        cancelled = [(1, job["tokens_in"], job["tokens_out"]) for job in jobs]
        return tuple(map(sum, zip(cost_of(answered[0])[:3], *cancelled)))

    _, answers = bills(all_of_it, cost)
    statuses = [one.status_code for one in answers]
    assert statuses[0] == 429 and set(statuses) == {429, 200}, statuses
    assert int(answers[0].headers["retry-after"]) >= 1 and answers[0].headers["x-should-retry"] == "true"


def mistakes_are_sent_once_and_cost_nothing():
    def mistakes():
        wrong = [fails(temperature=9), fails(model="nobody-serves-this"), fails(max_tokens=60_000)]
        return wrong, fails(extra_body={"provider": {"only": ["11" * 32]}})

    wrong, nobody = bills(mistakes, lambda _: (0, 0, 0, 0))
    assert wrong == [[400], [404], [400]] and nobody == [503, 503], (wrong, nobody)


def what_broke_off_after_it_was_paid_is_not_sent_again():
    broken = [{"role": "user", "content": "Break after nine tokens. [[fail=9]]"}]
    # As much is delivered as of an answer that was to have nine tokens.
    whole, *_ = bills(lambda: ask(messages=broken, max_tokens=9), lambda answered: cost_of(answered[0])[:3])
    assert bills(lambda: fails(messages=broken), lambda _: cost_of(whole)[:3]) == [502]


def whoever_finds_nobody_comes_again_until_somebody_is_there():
    _, statuses, _ = bills(lambda: ask(retries=30), lambda answered: cost_of(answered[0])[:3])
    assert statuses[0] == 503 and set(statuses) == {503, 200}, statuses


if DOORS:
    scenario(a_connection_that_is_cut_while_the_answer_is_made_is_paid_once_under_a_key)
    scenario(a_connection_that_is_cut_before_the_answer_comes_is_paid_once_under_a_key)
    scenario(without_a_key_it_is_paid_again)
    scenario(whoever_finds_every_place_taken_comes_again_and_pays_once)
    scenario(mistakes_are_sent_once_and_cost_nothing)
    # The last: a provider that broke off is left alone for a while.
    scenario(what_broke_off_after_it_was_paid_is_not_sent_again)
else:
    scenario(whoever_finds_nobody_comes_again_until_somebody_is_there)
print(json.dumps({"billed": billed()[:3]}))
end()
