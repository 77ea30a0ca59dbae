"""What the programs beside this one share: scenarios that run in order, the jobs that answers name, and the books."""

import json
import os
import urllib.request

done, jobs, stopped = [], [], []


def scenario(run):
    run()
    done.append(run.__name__)
    return run


def note(response):
    """Keeps the jobs that an answer names: an event hook, as the HTTP clients below both official clients know them."""
    for name in filter(None, response.headers.get("x-sharemesh-job", "").split(", ")):
        if name not in jobs:
            jobs.append(name)


def stops(tokens):
    """Says that the last job is to end long before it has made so many tokens, because its client left."""
    stopped.append({"job": jobs[-1], "tokens": tokens})


def billed():
    """Returns what the consumer's ledger has as paid: calls, tokens read, tokens written, nano-credits.

    The last may be ahead of the others once a job was cancelled: what was paid ahead for it pays for the next ones, or
    comes back when the channel is closed.
    """
    with open(os.path.join(os.environ["SHAREMESH_DATA"], "node.json"), encoding="utf-8") as file:
        node = json.load(file)
    url = f"http://{node['api']}/sharemesh/v1/ledger/receipts?limit=500"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {node['token']}"})
    with urllib.request.urlopen(request) as answer:
        page = json.load(answer)
    assert page.get("next") is None, "more receipts than a page has"
    newest = {}
    for receipt in page["receipts"]:
        newest.setdefault(receipt["channel"], receipt)
    counts = [
        (one["calls"], one["tokens_in"], one["tokens_out"], one["cumulative"]["nano"]) for one in newest.values()
    ]
    return tuple(map(sum, zip((0, 0, 0, 0), *counts)))


def end():
    """Prints what was done, for the test that started the program."""
    print(json.dumps({"done": done, "jobs": jobs, "stopped": stopped}))
