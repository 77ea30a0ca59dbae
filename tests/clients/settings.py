"""Does with a program's settings what the program does with them: finds the models, and streams an answer.

They are in the environment and behind the program's name, or on standard input as its file has them.
"""

import os
import sys

import yaml
from openai import OpenAI

PROGRAM, *WORDS = sys.argv[1:]


def of_aider():
    [flag, model] = WORDS
    assert flag == "--model"
    return os.environ["OPENAI_API_BASE"], os.environ["OPENAI_API_KEY"], model


def of_open_webui():
    # Its users choose among the models that it finds.
    return os.environ["OPENAI_API_BASE_URL"], os.environ["OPENAI_API_KEY"], None


def of_continue():
    [model] = yaml.safe_load(sys.stdin)["models"]
    assert model["provider"] == "openai"
    return model["apiBase"], model["apiKey"], model["model"]


def of_litellm():
    [model] = yaml.safe_load(sys.stdin)["model_list"]
    parameters = model["litellm_params"]
    return parameters["api_base"], parameters["api_key"], parameters["model"]


def main():
    settings = {"aider": of_aider, "open-webui": of_open_webui, "continue": of_continue, "litellm": of_litellm}
    base, key, model = settings[PROGRAM]()
    client = OpenAI(base_url=base, api_key=key)
    offered = [found.id for found in client.models.list() if found.sharemesh["kind"] == "text"]
    if PROGRAM in ("aider", "litellm"):
        # By the prefix they know whose dialect to speak; it is not sent.
        assert model.startswith("openai/"), model
        model = model.removeprefix("openai/")
    model = model or offered[0]
    assert model in offered, (model, offered)
    hello = [{"role": "user", "content": "Why is the sky blue?"}]
    stream = client.chat.completions.create(model=model, messages=hello, max_tokens=8, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text, "nothing was answered"
    print(text)


main()
