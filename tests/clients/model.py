"""Asks a real model through a node with the official Python client, where what it answers matters."""

import json
import math
import sys

from openai import OpenAI

BASE, MODEL, MESSAGES, FIRST_TOKEN = sys.argv[1:5]

client = OpenAI(base_url=BASE, api_key="unused", max_retries=0)


def ask(**more):
    arguments = {"model": MODEL, "messages": json.loads(MESSAGES), "max_tokens": 12, "temperature": 0, **more}
    return client.chat.completions.create(**arguments)


answer = ask(logprobs=True, top_logprobs=5)
text = answer.choices[0].message.content
print(json.dumps({"text": text, "tokens_in": answer.usage.prompt_tokens}))

tokens = answer.choices[0].logprobs.content
assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
for token in tokens:
    top = [other.logprob for other in token.top_logprobs]
    assert top == sorted(top, reverse=True) and token.logprob == top[0], "temperature 0 takes the likeliest"
    assert sum(math.exp(logprob) for logprob in top) <= 1.0001

streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True))
assert streamed == text, (streamed, text)

banned = ask(logit_bias={FIRST_TOKEN: -100}, logprobs=True).choices[0].logprobs.content
assert banned[0].token != tokens[0].token, "a banned token came up"

repeated = ask(logit_bias={FIRST_TOKEN: 100}, max_tokens=4).choices[0].message.content
assert repeated == tokens[0].token * 4, repeated
varied = ask(logit_bias={FIRST_TOKEN: 1.5}, presence_penalty=2, frequency_penalty=2, max_tokens=12)
assert varied.choices[0].message.content.count(tokens[0].token) <= 2, varied

tool = {"type": "function", "function": {"name": "weather", "description": "Says how the weather is in a city."}}
city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 40}}, "required": ["city"]}
tool["function"]["parameters"] = {**city, "additionalProperties": False}
wanted = [{"role": "user", "content": "How is the weather in Paris?"}]
called = ask(messages=wanted, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=64).choices[0]
call = called.message.tool_calls[0]
assert called.finish_reason == "tool_calls" and call.function.name == "weather", called
assert list(json.loads(call.function.arguments)) == ["city"], call
