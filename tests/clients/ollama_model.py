"""Asks real models through a node with the official Ollama client."""

import sys

import ollama
from pydantic import BaseModel, Field
from scenarios import end, note, scenario, stops

BASE, MODEL, VECTORS = sys.argv[1:4]
USER = [{"role": "user", "content": "Why is the sky blue?"}]
GREEDY = {"temperature": 0, "num_predict": 12}

client = ollama.Client(host=BASE.removesuffix("/v1"), event_hooks={"response": [note]})


def chat(options=GREEDY, **more):
    return client.chat(**{"model": MODEL, "messages": USER, "options": options, **more})


@scenario
def a_chat_is_answered_whole_and_line_by_line():
    whole = chat()
    assert whole.message.content and whole.done_reason == "length" and whole.eval_count == 12
    lines = list(chat(stream=True))
    assert "".join(line.message.content for line in lines) == whole.message.content
    assert len(lines) > 2 and [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    last = lines[-1]
    assert (last.eval_count, last.prompt_eval_count) == (12, whole.prompt_eval_count)
    assert last.total_duration >= last.prompt_eval_duration + last.eval_duration and last.eval_duration > 0
    assert chat({**GREEDY, "seed": 1, "temperature": 1}) != chat({**GREEDY, "seed": 2, "temperature": 1})


@scenario
def a_stop_string_ends_the_answer_before_it():
    text = chat({**GREEDY, "num_predict": 24}).message.content
    stop = text.split()[5]
    cut = chat({**GREEDY, "num_predict": 24, "stop": [stop]})
    assert cut.message.content == text[: text.index(stop)] and cut.done_reason == "stop", cut
    assert cut.eval_count < 24


@scenario
def a_text_is_continued_as_a_chat_or_raw():
    answer = client.generate(model=MODEL, prompt=USER[0]["content"], options=GREEDY)
    assert answer.response == chat().message.content
    asked = {"model": MODEL, "prompt": "One, two, three,", "raw": True, "options": {**GREEDY, "num_predict": 8}}
    raw = client.generate(**asked)
    assert "four" in raw.response, raw
    assert "".join(part.response for part in client.generate(stream=True, **asked)) == raw.response


class City(BaseModel, extra="forbid"):
    name: str = Field(max_length=12)
    capital: bool


@scenario
def an_answer_has_the_form_that_was_asked_for():
    about = [{"role": "user", "content": "Tell me about Paris."}]
    for options in [GREEDY, {"temperature": 1.8, "seed": 3}]:
        answer = chat({**options, "num_predict": 48}, messages=about, format=City.model_json_schema())
        City.model_validate_json(answer.message.content)
        assert answer.done_reason == "stop"
    free = client.generate(model=MODEL, prompt="Tell me about Paris.", format="json", options=GREEDY)
    assert free.response.startswith("{"), free


@scenario
def tools_are_told_and_their_results_taken():
    def weather(city: str) -> str:
        """Says how the weather is in a city.

        Args:
            city: Which.
        """
        return city

    wanted = [{"role": "user", "content": "How is the weather in Paris?"}]
    without, told = chat(messages=wanted), chat(messages=wanted, tools=[weather])
    assert told.prompt_eval_count > without.prompt_eval_count + 20, "the model reads of the tool"
    # This dialect cannot say that a tool must be called, and so small a model seldom does it by itself.
    for call in told.message.tool_calls or []:
        assert call.function.name == "weather", told
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    results = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_name": "weather", "content": "mild"}]
    after = chat(messages=[*wanted, *results])
    assert after.message.content and after.prompt_eval_count > without.prompt_eval_count, after


def cosine(left, right):
    return sum(one * another for one, another in zip(left, right))


@scenario
def texts_become_vectors():
    texts = ["The sky is blue.", "Is the sky blue today?", "He drove to the stadium."]
    sky, same, other = client.embed(model=VECTORS, input=texts).embeddings
    assert len(sky) == 384 and abs(cosine(sky, sky) - 1) < 1e-4
    assert cosine(sky, same) > 0.6 > 0.3 > cosine(sky, other)
    [alone] = client.embed(model=VECTORS, input=texts[0]).embeddings
    assert all(abs(one - another) < 1e-5 for one, another in zip(alone, sky))


@scenario
def a_stream_that_is_closed_stops():
    lines = chat({"temperature": 0, "num_predict": 1_000}, stream=True)
    assert next(lines).message.content
    stops(1_000)
    lines.close()


end()
