"""Drives a node with the official Ollama client, as a program does that has changed its host only."""

import json
import sys

import httpx
import ollama
from scenarios import end, note, scenario, stops

BASE, MODEL, WRONG_KEY = sys.argv[1:4]
HOST = BASE.removesuffix("/v1")
USER = [{"role": "user", "content": "Why is the sky blue?"}]
OPTIONS = {"seed": 7, "num_predict": 24}

client = ollama.Client(host=HOST, event_hooks={"response": [note]})


def refused(call):
    try:
        call()
    except ollama.ResponseError as error:
        return error
    raise AssertionError("it was not refused")


@scenario
def the_node_is_found_and_says_what_it_offers():
    assert httpx.get(HOST).text == "Ollama is running" and httpx.head(HOST).status_code == 200
    assert httpx.get(f"{HOST}/api/version").json()["version"]
    listed = {model.model: model for model in client.list().models}
    assert listed[MODEL].digest and listed[MODEL].modified_at.year > 2024, listed
    running = next(model for model in client.ps().models if model.model == MODEL)
    assert running.expires_at > listed[MODEL].modified_at and running.context_length > 0
    shown = client.show(MODEL)
    assert "completion" in shown.capabilities and shown.modelinfo["general.context_length"] > 0
    assert client.show(f"{MODEL}:latest").license == shown.license


@scenario
def a_chat_is_answered_whole_and_line_by_line():
    answer = client.chat(model=MODEL, messages=USER, options=OPTIONS)
    assert answer.message.role == "assistant" and answer.message.content
    assert answer.done and answer.done_reason == "length" and answer.eval_count == 24
    assert answer.total_duration >= answer.eval_duration >= 0 and answer.prompt_eval_count > 0
    lines = list(client.chat(model=MODEL, messages=USER, options=OPTIONS, stream=True))
    assert "".join(line.message.content for line in lines) == answer.message.content
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].eval_count == 24 and lines[0].eval_count is None
    print(json.dumps({"text": answer.message.content, "receipt": answer.model_dump().get("sharemesh")}))


@scenario
def a_text_is_continued_as_a_chat_or_raw():
    answer = client.generate(model=MODEL, prompt="Once", system="Be brief.", options=OPTIONS)
    assert answer.response and answer.done_reason == "length"
    raw = client.generate(model=MODEL, prompt="Once", raw=True, options=OPTIONS)
    assert raw.response and raw.response != answer.response
    parts = client.generate(model=MODEL, prompt="Once", raw=True, options=OPTIONS, stream=True)
    assert "".join(part.response for part in parts) == raw.response


@scenario
def an_answer_has_the_form_that_was_asked_for():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = client.chat(model=MODEL, messages=USER, format=schema)
    assert isinstance(json.loads(answer.message.content)["ok"], bool) and answer.done_reason == "stop"
    assert isinstance(json.loads(client.generate(model=MODEL, prompt="x", format="json").response), dict)


@scenario
def tools_are_called_and_their_results_taken():
    def weather(place: str) -> str:
        """Says how the weather is.

        Args:
            place: Where.
        """
        return place

    call = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'
    told = [{"role": "user", "content": f"[[say={call}\n{call}]]"}]
    answer = client.chat(model=MODEL, messages=told, tools=[weather])
    calls = answer.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", {"place": "Rome"})] * 2
    lines = list(client.chat(model=MODEL, messages=told, tools=[weather], stream=True))
    assert sum(len(line.message.tool_calls or []) for line in lines) == 2
    results = [{"role": "tool", "content": "mild", "tool_name": "weather"}] * 2
    after = client.chat(model=MODEL, messages=[*USER, answer.message, *results], options=OPTIONS)
    assert after.message.content


@scenario
def mistakes_raise_the_exception_that_programs_expect():
    error = refused(lambda: client.chat(model="nobody-serves-this", messages=USER))
    assert error.status_code == 404 and "nobody-serves-this" in error.error, error
    assert refused(lambda: client.show("nobody-serves-this")).status_code == 404
    error = refused(lambda: client.chat(model=MODEL, messages=USER, options={"temperature": 9}))
    assert error.status_code == 400 and "temperature" in error.error, error
    error = refused(lambda: client.embed(model=MODEL, input="x"))
    assert error.status_code == 400 and "embeddings" in error.error, error
    error = refused(lambda: client.chat(model=MODEL, messages=USER, logprobs=True))
    assert error.status_code == 400 and "logprobs" in error.error, error
    wrong = ollama.Client(host=HOST, headers={"Authorization": f"Bearer {WRONG_KEY}"})
    assert refused(wrong.list).status_code == 401
    broken = [{"role": "user", "content": "Break after nine tokens. [[fail=9]]"}]
    error = refused(lambda: client.chat(model=MODEL, messages=broken))
    assert error.status_code == 502 and error.error, error
    error = refused(lambda: list(client.chat(model=MODEL, messages=broken, stream=True)))
    assert error.error and "{" not in error.error, error


@scenario
def stop_strings_end_the_answer():
    words = client.chat(model=MODEL, messages=USER, options=OPTIONS).message.content.split()
    answer = client.chat(model=MODEL, messages=USER, options={**OPTIONS, "stop": [words[3]]})
    assert answer.message.content.split() == words[:3] and answer.done_reason == "stop", answer


@scenario
def a_stream_that_is_closed_stops():
    stream = client.chat(model=MODEL, messages=USER, options={"num_predict": 4_000}, stream=True)
    next(stream)
    stops(4_000)
    stream.close()


end()
