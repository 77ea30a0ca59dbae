"""Asks a model of vectors through a node with the official Python clients of OpenAI and of Ollama."""

import base64
import json
import struct
import sys

import ollama
import openai
from openai import OpenAI
from scenarios import end, note

BASE, MODEL, TEXT_MODEL = sys.argv[1:4]
TEXTS = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]

noting = openai.DefaultHttpxClient(event_hooks={"response": [note]})
client = OpenAI(base_url=BASE, api_key="unused", max_retries=0, http_client=noting)


def near(left, right):
    return len(left) == len(right) and all(abs(one - other) < 1e-5 for one, other in zip(left, right))


def refused(call):
    try:
        call()
    except openai.BadRequestError as error:
        return error
    raise AssertionError("it was not refused")


# The client asks for base64 by itself, and turns it back.
raw = client.embeddings.with_raw_response.create(model=MODEL, input=TEXTS)
answer = raw.parse()
assert [one.index for one in answer.data] == [0, 1, 2] and answer.model == MODEL
assert answer.usage.prompt_tokens == answer.usage.total_tokens == 25, answer.usage
vectors = [one.embedding for one in answer.data]
receipt = raw.headers["x-sharemesh-receipt"]
print(json.dumps({"vectors": vectors, "receipt": receipt, "price": answer.sharemesh[0]["price_nano"]}))

plain = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float")
assert near(plain.data[0].embedding, vectors[0])
coded = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="base64").data[0].embedding
assert near(struct.unpack("<384f", base64.b64decode(coded, validate=True)), vectors[0])
tokens = client.embeddings.create(model=MODEL, input=[[101, 1996, 4633, 2003, 8403, 2651, 1012, 102]])
assert near(tokens.data[0].embedding, vectors[0]) and tokens.usage.prompt_tokens == 8

# More than one payment pays for.
many = client.embeddings.create(model=MODEL, input=[TEXTS[number % 3] for number in range(300)])
assert len(many.data) == 300 and many.usage.prompt_tokens == 2_500
assert all(near(one.embedding, vectors[one.index % 3]) for one in many.data)

long = "word " * 400
error = refused(lambda: client.embeddings.create(model=MODEL, input=long))
assert error.code == "context_length_exceeded", error
error = refused(lambda: client.embeddings.create(model=MODEL, input="x", dimensions=8))
assert error.param == "dimensions", error
error = refused(lambda: client.embeddings.create(model=TEXT_MODEL, input="x"))
assert error.param == "model" and "embeddings" in error.message, error
chat = [{"role": "user", "content": "Hello!"}]
error = refused(lambda: client.chat.completions.create(model=MODEL, messages=chat))
assert error.param == "model" and "no text" in error.message, error
assert next(model for model in client.models.list() if model.id == MODEL).sharemesh["kind"] == "embedding"

other = ollama.Client(host=BASE.removesuffix("/v1"), event_hooks={"response": [note]})
embedded = other.embed(model=MODEL, input=TEXTS)
assert all(near(left, right) for left, right in zip(embedded.embeddings, vectors))
assert embedded.prompt_eval_count == 25
cut = other.embed(model=MODEL, input=long)
assert cut.prompt_eval_count == 256, cut.prompt_eval_count
assert near(other.embeddings(model=MODEL, prompt=TEXTS[2]).embedding, vectors[2])
assert other.show(MODEL).capabilities == ["embedding"]
try:
    other.embed(model=MODEL, input=long, truncate=False)
    raise AssertionError("a text that is too long was taken")
except ollama.ResponseError as error:
    assert error.status_code == 400 and "256" in error.error, error

end()
