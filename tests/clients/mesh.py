"""Drives a node with the official Python client, as a program does that has changed its base URL only."""

import asyncio
import json
import sys

import openai
import pydantic
from openai import AsyncOpenAI, OpenAI
from scenarios import end, note, scenario, stops

BASE, MODEL, WRONG_KEY = sys.argv[1:4]
USER = [{"role": "user", "content": "Why is the sky blue?"}]

noting = openai.DefaultHttpxClient(event_hooks={"response": [note]})
client = OpenAI(base_url=BASE, api_key="unused", max_retries=0, http_client=noting)


def ask(**more):
    arguments = {"model": MODEL, "messages": USER, "max_tokens": 24, "seed": 7, **more}
    return client.chat.completions.create(**arguments)


def refused(kind, **more):
    try:
        ask(**more)
    except kind as error:
        return error
    raise AssertionError(f"{more} was not refused")


@scenario
def models_are_listed_and_retrieved():
    model = next(model for model in client.models.list() if model.id == MODEL)
    assert client.models.retrieve(MODEL).id == MODEL
    assert model.object == "model" and model.sharemesh["providers"] == 1


@scenario
def a_chat_is_answered_and_paid():
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=USER, max_tokens=24, seed=7)
    answer = raw.parse()
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.created > 1_700_000_000
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert len(answer._request_id) == 32
    assert float(raw.headers["x-sharemesh-price"]) > 0
    for name in ["x-sharemesh-job", "x-sharemesh-provider", "x-sharemesh-receipt"]:
        assert raw.headers[name], name
    print(json.dumps({"text": choice.message.content, "receipt": raw.headers["x-sharemesh-receipt"]}))


@scenario
def a_stream_says_the_same_and_its_usage_last():
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert all(chunk.choices for chunk in ask(stream=True)), "usage that nobody asked for"


@scenario
def the_streaming_helper_understands_the_stream():
    ends = [{"role": "user", "content": "Say nine words. [[end=9]]"}]
    with client.chat.completions.stream(model=MODEL, messages=ends, seed=7) as stream:
        events = [event.type for event in stream]
        assert "content.delta" in events and "content.done" in events, events
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "stop" and final.message.content == ask(messages=ends).choices[0].message.content


@scenario
def several_choices_are_different_answers():
    choices = ask(n=3).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) == 3
    assert choices[0].message.content == ask().choices[0].message.content


@scenario
def stop_strings_end_the_answer():
    words = ask().choices[0].message.content.split()
    choice = ask(stop=[words[3]]).choices[0]
    assert choice.finish_reason == "stop" and choice.message.content.split() == words[:3], choice


@scenario
def completions_are_answered_whole_and_streamed():
    whole = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, seed=1)
    assert whole.object == "text_completion" and whole.choices[0].text and whole.usage.completion_tokens == 8
    parts = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, seed=1, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


@scenario
def log_probabilities_come_with_each_token():
    choice = ask(logprobs=True, top_logprobs=2).choices[0]
    assert len(choice.logprobs.content) == 24
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0.0001 for token in choice.logprobs.content)
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content


class Person(pydantic.BaseModel):
    name: str
    age: int
    friends: list[str]


@scenario
def an_answer_has_the_form_that_was_asked_for():
    choice = ask(response_format={"type": "json_object"}).choices[0]
    assert isinstance(json.loads(choice.message.content), dict) and choice.finish_reason == "stop"
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema = {"name": "answer", "strict": True, "schema": {**schema, "additionalProperties": False}}
    choice = ask(response_format={"type": "json_schema", "json_schema": schema}, temperature=1).choices[0]
    assert list(json.loads(choice.message.content)) == ["ok"] and choice.finish_reason == "stop"
    parsed = client.chat.completions.parse(model=MODEL, messages=USER, max_tokens=64, response_format=Person)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    with client.chat.completions.stream(model=MODEL, messages=USER, max_tokens=64, response_format=Person) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)
    cut = ask(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=2).choices[0]
    assert cut.finish_reason == "length", cut


PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Says how it is.", "parameters": PLACE}}
TIME = {"type": "function", "function": {"name": "time"}}


def told(text):
    """A message to which the fake model answers with this very text, where its grammar lets it."""
    return [{"role": "user", "content": f"[[say={text}]]"}]


@scenario
def tools_are_called_and_their_results_taken():
    call = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'
    both = f'{call}\n<tool_call>\n{{"name": "time", "arguments": {{}}}}\n</tool_call>'
    tools = {"tools": [WEATHER, TIME], "max_tokens": 300}
    choice = ask(messages=told(both), **tools).choices[0]
    calls = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"place": "Rome"}'),
        ("time", "{}"),
    ]
    assert len({call.id for call in calls}) == 2
    with client.chat.completions.stream(model=MODEL, messages=told(f"Hm. {call}"), **tools) as stream:
        events = {event.type for event in stream}
        assert "tool_calls.function.arguments.delta" in events, events
        final = stream.get_final_completion().choices[0]
    assert final.message.content == "Hm. " and final.message.tool_calls[0].function.arguments == '{"place": "Rome"}'
    one = ask(messages=told(both), parallel_tool_calls=False, **tools).choices[0].message.tool_calls
    assert [call.function.name for call in one] == ["weather"]

    asked = [*USER, choice.message, *({"role": "tool", "tool_call_id": call.id, "content": "mild"} for call in calls)]
    after = ask(messages=asked, tool_choice="none", **tools).choices[0]
    assert after.message.content and after.message.tool_calls is None


@scenario
def a_response_is_answered_whole_and_event_by_event():
    asked = {"model": MODEL, "input": USER, "instructions": "Be brief.", "max_output_tokens": 24}
    answer = client.responses.create(**asked)
    assert answer.output_text and answer.status == "incomplete", answer
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 24 and answer.usage.total_tokens == answer.usage.input_tokens + 24
    assert answer.id.startswith("resp_") and answer.instructions == "Be brief." and answer.store is False
    assert answer.sharemesh[0]["price_nano"] > 0
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == text and text
    with client.responses.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        assert {"response.output_text.delta", "response.output_item.done"} <= kinds, kinds


@scenario
def a_response_calls_tools_and_has_the_form_that_was_asked_for():
    call = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'
    tool = {"type": "function", **WEATHER["function"]}
    asked = {"model": MODEL, "tools": [tool], "max_output_tokens": 300}
    answer = client.responses.create(input=told(f"Hm. {call}"), **asked)
    words, called = answer.output
    assert words.content[0].text == "Hm. " and answer.status == "completed", answer
    assert called.type == "function_call" and json.loads(called.arguments) == {"place": "Rome"}
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "mild"}
    after = client.responses.create(
        model=MODEL, input=[*USER, *answer.output, result], tools=[tool], tool_choice="none", max_output_tokens=8
    )
    assert after.output_text
    events = list(client.responses.create(input=told(call), stream=True, **asked))
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(arguments)) == {"place": "Rome"} and events[-1].type == "response.completed"

    class Ok(pydantic.BaseModel):
        ok: bool

    parsed = client.responses.parse(model=MODEL, input="Is it?", text_format=Ok)
    assert isinstance(parsed.output_parsed.ok, bool)


@scenario
def a_response_that_would_have_to_be_kept_is_refused():
    try:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
        raise AssertionError("it was not refused")
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id" and error.body["message"], error


@scenario
def whether_a_tool_is_called_can_be_chosen():
    tools = {"tools": [WEATHER, TIME], "max_tokens": 300, "messages": told("No.")}
    assert ask(**tools).choices[0].message.content == "No."
    assert ask(tool_choice="none", **tools).choices[0].message.content == "No."
    for choice in ["required", {"type": "function", "function": {"name": "weather"}}]:
        called = ask(tool_choice=choice, **tools).choices[0].message.tool_calls[0].function
        arguments = json.loads(called.arguments)
        assert called.name == "time" or isinstance(arguments["place"], str), called
        assert choice == "required" or called.name == "weather", called
    cut = ask(**{**tools, "tool_choice": "required", "max_tokens": 3}).choices[0]
    assert cut.finish_reason == "length", cut
    assert refused(openai.BadRequestError, tool_choice="required").param == "tool_choice"
    king = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "king"}}}}}
    error = refused(openai.BadRequestError, tools=[king])
    assert error.param == "tools" and "king" in error.message


@scenario
def mistakes_raise_the_exceptions_that_programs_expect():
    error = refused(openai.BadRequestError, temperature=3)
    assert error.param == "temperature" and error.type == "invalid_request_error"
    assert refused(openai.BadRequestError, messages=[]).param == "messages"
    schema = {"name": "king", "schema": {"type": "king"}}
    error = refused(openai.BadRequestError, response_format={"type": "json_schema", "json_schema": schema})
    assert error.param == "response_format" and "king" in error.message
    assert refused(openai.BadRequestError, max_tokens=60_000).code == "context_length_exceeded"
    assert refused(openai.NotFoundError, model="nobody-serves-this").code == "model_not_found"
    wrong = OpenAI(base_url=BASE, api_key=WRONG_KEY, max_retries=0)
    try:
        wrong.models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key was taken")


@scenario
def a_dry_run_names_the_price_and_costs_nothing():
    quote = ask(extra_query={"dry_run": "true"}).model_dump()
    best = quote["candidates"][0]
    assert best["chosen"] and best["name"] == "provider", quote
    answer = ask().model_dump()["sharemesh"][0]
    assert answer["provider"] == best["node"] and answer["price_nano"] <= quote["price_max"]["nano"]
    nobody = ask(extra_query={"dry_run": "true"}, extra_body={"provider": {"max_price": "0"}}).model_dump()
    assert nobody["price_max"] is None and nobody["candidates"][0]["reason"] == "price", nobody


@scenario
def a_job_tells_why_its_provider_was_chosen_and_what_it_cost():
    answer = ask()
    charge = answer.model_dump()["sharemesh"][0]
    for name in [answer.id, charge["job"]]:
        job = client.get(f"/jobs/{name}", cast_to=object)
        assert job["state"] == "settled" and job["role"] == "consumer", job
        assert job["price"]["nano"] == charge["price_nano"] and job["receipt"] == charge["receipt"], job
        assert job["why"][0]["chosen"] and job["why"][0]["node"] == charge["provider"], job


@scenario
def the_same_request_under_one_key_is_paid_once():
    headers = {"Idempotency-Key": "a key of the client"}
    first, again = (ask(extra_headers=headers) for _ in range(2))
    assert first == again


@scenario
def a_stream_that_is_closed_stops():
    stream = ask(stream=True, max_tokens=4_000)
    stops(4_000)
    next(iter(stream))
    stream.close()


@scenario
def the_asynchronous_client_is_served_too():
    async def note_soon(response):
        note(response)

    async def stream():
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note_soon]})
        asynchronous = AsyncOpenAI(base_url=BASE, api_key="unused", max_retries=0, http_client=http)
        chunks = await asynchronous.chat.completions.create(
            model=MODEL, messages=USER, max_tokens=24, seed=7, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(stream()) == ask().choices[0].message.content


end()
