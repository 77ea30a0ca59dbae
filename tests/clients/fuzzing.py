"""Has the program that tries the API ask for what there is, where anything else would only find nothing."""

import schemathesis


@schemathesis.hook
def map_body(context, body):
    """Asks for the model that is served, and for few tokens: a name that was made up is searched for for seconds."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "fake"
    if isinstance(body, dict) and isinstance(body.get("n"), int) and body["n"] > 2:
        body["n"] = 2
    for name in ["max_tokens", "max_completion_tokens"]:
        if isinstance(body, dict) and isinstance(body.get(name), int) and body[name] > 8:
            body[name] = 8
    return body
