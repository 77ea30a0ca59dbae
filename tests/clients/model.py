"""Asks a real model through a node with the official Python client, where what it answers matters."""

import asyncio
import json
import math
import sys

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field
from scenarios import end, note, scenario, stops

BASE, MODEL, MESSAGES, FIRST_TOKEN = sys.argv[1:5]
USER = [{"role": "user", "content": "Why is the sky blue?"}]
# The tokens by which this model ends an answer.
GOES_ON = {"0": -100, "2": -100}

noting = openai.DefaultHttpxClient(event_hooks={"response": [note]})
client = OpenAI(base_url=BASE, api_key="unused", max_retries=0, http_client=noting)


def ask(**more):
    arguments = {"model": MODEL, "messages": json.loads(MESSAGES), "max_tokens": 12, "temperature": 0, **more}
    return client.chat.completions.create(**arguments)


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@scenario
def an_answer_is_the_engines_and_its_probabilities_are_the_models():
    answer = ask(logprobs=True, top_logprobs=5)
    text = answer.choices[0].message.content
    print(json.dumps({"text": text, "tokens_in": answer.usage.prompt_tokens}))

    tokens = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    for token in tokens:
        top = [other.logprob for other in token.top_logprobs]
        assert top == sorted(top, reverse=True) and token.logprob == top[0], "temperature 0 takes the likeliest"
        assert sum(math.exp(logprob) for logprob in top) <= 1.0001

    banned = ask(logit_bias={FIRST_TOKEN: -100}, logprobs=True).choices[0].logprobs.content
    assert banned[0].token != tokens[0].token, "a banned token came up"
    repeated = ask(logit_bias={FIRST_TOKEN: 100}, max_tokens=4).choices[0].message.content
    assert repeated == tokens[0].token * 4, repeated
    varied = ask(logit_bias={FIRST_TOKEN: 1.5}, presence_penalty=2, frequency_penalty=2, max_tokens=12)
    assert varied.choices[0].message.content.count(tokens[0].token) <= 2, varied


@scenario
def a_stream_says_the_same_and_its_usage_and_probabilities_too():
    whole = ask(messages=USER, logprobs=True, top_logprobs=1)
    chunks = list(ask(messages=USER, logprobs=True, stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage, chunks[-1]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    parts = [chunk.choices[0].logprobs for chunk in chunks[:-1]]
    tokens = [token for part in parts if part for token in part.content or []]
    expected = [(token.token, token.logprob) for token in whole.choices[0].logprobs.content]
    assert [(token.token, token.logprob) for token in tokens] == expected


@scenario
def a_stop_string_ends_the_answer_before_it():
    whole = ask(messages=USER, max_tokens=24)
    text = whole.choices[0].message.content
    stop = text.split()[5]
    expected = text[: text.index(stop)]
    cut = ask(messages=USER, max_tokens=24, stop=["never said", stop])
    assert cut.choices[0].message.content == expected and cut.choices[0].finish_reason == "stop", cut
    assert cut.usage.completion_tokens < whole.usage.completion_tokens, "what came after it is not paid"
    chunks = list(ask(messages=USER, max_tokens=24, stop=stop, stream=True))
    assert text_of(chunks) == expected and chunks[-1].choices[0].finish_reason == "stop"


@scenario
def several_choices_are_what_their_seeds_make():
    more = {"messages": USER, "temperature": 1, "max_tokens": 8}
    answer = ask(n=2, seed=70, **more)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1] and texts[0] != texts[1], texts
    assert texts == [ask(seed=70 + index, **more).choices[0].message.content for index in range(2)]
    assert answer.usage.completion_tokens == 16 and answer.usage.prompt_tokens % 2 == 0, answer.usage
    streamed = list(ask(n=2, seed=70, stream=True, **more))
    for index, text in enumerate(texts):
        assert text_of(chunk for chunk in streamed if chunk.choices[0].index == index) == text


class City(BaseModel, extra="forbid"):
    name: str = Field(max_length=12)
    inhabitants: int = Field(ge=0, le=9_999_999)
    capital: bool


@scenario
def an_answer_has_the_form_that_was_asked_for():
    about = [{"role": "user", "content": "Tell me about Paris."}]
    for temperature in [0, 1.8]:
        form = {"messages": about, "temperature": temperature, "seed": 3, "max_tokens": 64}
        parsed = client.chat.completions.parse(model=MODEL, response_format=City, **form)
        assert isinstance(parsed.choices[0].message.parsed, City) and parsed.choices[0].finish_reason == "stop"
    schema = {"name": "city", "strict": True, "schema": City.model_json_schema()}
    form = {"messages": about, "response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 64}
    streamed = text_of(ask(stream=True, **form))
    assert list(json.loads(streamed)) == ["name", "inhabitants", "capital"], streamed
    free = ask(messages=about, response_format={"type": "json_object"}, max_tokens=16).choices[0]
    assert free.message.content.startswith("{"), free
    assert free.finish_reason == "length" or isinstance(json.loads(free.message.content), dict), free


PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 40}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Says how the weather is in a city."}
WEATHER["parameters"] = {**PLACE, "additionalProperties": False}
WANTED = [{"role": "user", "content": "How is the weather in Paris?"}]


@scenario
def a_tool_is_called_and_its_result_taken():
    tools = {"messages": WANTED, "tools": [{"type": "function", "function": WEATHER}], "parallel_tool_calls": False}
    called = ask(tool_choice="required", max_tokens=64, **tools).choices[0]
    [call] = called.message.tool_calls
    assert called.finish_reason == "tool_calls" and call.function.name == "weather", called
    assert list(json.loads(call.function.arguments)) == ["city"], call

    named = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(model=MODEL, temperature=0, max_tokens=64, tool_choice=named, **tools) as stream:
        kinds = {event.type for event in stream}
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds, kinds
    assert streamed.function.name == "weather" and list(json.loads(streamed.function.arguments)) == ["city"]

    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 20 degrees."}
    after = ask(messages=[*WANTED, called.message, result], tools=tools["tools"], tool_choice="none")
    alone = ask(messages=WANTED, tools=tools["tools"], tool_choice="none")
    assert after.choices[0].message.content and after.choices[0].message.tool_calls is None, after
    assert after.usage.prompt_tokens > alone.usage.prompt_tokens, "the call and its result are read"


@scenario
def a_text_is_continued_whole_and_streamed():
    asked = {"model": MODEL, "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(logprobs=2, **asked)
    parts = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    text = whole.choices[0].text
    assert "four" in text and "".join(whole.choices[0].logprobs.tokens) == text, whole
    assert "".join(part.choices[0].text for part in parts if part.choices) == text
    assert parts[-1].usage == whole.usage and whole.usage.completion_tokens == 8


@scenario
def a_response_is_answered_whole_and_event_by_event():
    asked = {"model": MODEL, "input": USER, "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.output_text == ask(messages=USER).choices[0].message.content, whole
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.incomplete" and events[-1].response.usage == whole.usage
    parsed = client.responses.parse(model=MODEL, input="Tell me about Paris.", temperature=0, text_format=City)
    assert isinstance(parsed.output_parsed, City) and parsed.status == "completed"


@scenario
def a_response_calls_a_tool_and_takes_its_result():
    tools = [{"type": "function", **WEATHER}]
    asked = {"model": MODEL, "tools": tools, "temperature": 0, "max_output_tokens": 64}
    whole = client.responses.create(input=WANTED, tool_choice="required", parallel_tool_calls=False, **asked)
    [call] = whole.output
    assert call.type == "function_call" and call.name == "weather" and whole.status == "completed", whole
    assert list(json.loads(call.arguments)) == ["city"], call
    choice = {"type": "function", "name": "weather"}
    events = list(client.responses.create(input=WANTED, tool_choice=choice, stream=True, **asked))
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert list(json.loads("".join(arguments))) == ["city"] and events[-1].type == "response.completed"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 20 degrees."}
    asked["max_output_tokens"] = 8
    after = client.responses.create(input=[*WANTED, call, result], tool_choice="none", **asked)
    assert after.output_text and after.output[0].type == "message", after


@scenario
def what_the_model_cannot_read_is_refused():
    long = [{"role": "user", "content": "word " * 20_000}]
    for call in [
        lambda: ask(messages=long),
        lambda: list(ask(messages=long, stream=True)),
        lambda: client.responses.create(model=MODEL, input=long),
        lambda: client.completions.create(model=MODEL, prompt=long[0]["content"]),
    ]:
        try:
            call()
            raise AssertionError("it was not refused")
        except openai.BadRequestError as error:
            assert error.code == "context_length_exceeded", error


@scenario
def the_asynchronous_client_is_served_too():
    async def note_soon(response):
        note(response)

    async def answers():
        hooks = {"response": [note_soon]}
        http = openai.DefaultAsyncHttpxClient(event_hooks=hooks)
        asynchronous = AsyncOpenAI(base_url=BASE, api_key="unused", max_retries=0, http_client=http)
        asked = {"model": MODEL, "messages": USER, "max_tokens": 12, "temperature": 0}
        both = await asyncio.gather(*(asynchronous.chat.completions.create(**asked) for _ in range(2)))
        stream = await asynchronous.chat.completions.create(stream=True, **asked)
        return [answer.choices[0].message.content for answer in both] + [text_of([chunk async for chunk in stream])]

    assert asyncio.run(answers()) == [ask(messages=USER).choices[0].message.content] * 3


@scenario
def a_stream_that_is_closed_stops():
    chat = ask(messages=USER, max_tokens=1_000, logit_bias=GOES_ON, stream=True)
    stops(1_000)
    assert text_of([next(chat), next(chat), next(chat)])
    chat.close()
    events = client.responses.create(model=MODEL, input=USER, max_output_tokens=1_000, temperature=0, stream=True)
    stops(1_000)
    assert any(event.type == "response.output_text.delta" for event in events)
    events.close()


end()
