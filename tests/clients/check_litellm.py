"""LiteLLM's client."""

import litellm
import probe
from probe import MODEL, check, words

litellm.suppress_debug_info = True
litellm.telemetry = False
TOLD = {"model": f"openai/{MODEL}", "api_base": probe.BASE_URL, "api_key": probe.API_KEY, "num_retries": 0}


def ask(text, n=5, **more):
    return litellm.completion(**TOLD, max_tokens=n, messages=[{"role": "user", "content": text}], **more)


@check
def chat_plain():
    got = ask("hello")
    assert got.choices[0].message.content == words("hello", 5)
    return got


@check
def chat_streamed():
    text = "".join(c.choices[0].delta.content or "" for c in ask("s", stream=True))
    assert text == words("s", 5)
    return text


@check
def stream_usage():
    chunks = list(ask("s", stream=True, stream_options={"include_usage": True}))
    usage = [c.usage for c in chunks if getattr(c, "usage", None)]
    assert usage[-1].completion_tokens == 5
    return usage[-1].completion_tokens


@check
def tools():
    got = ask("t", tools=probe.TOOLS)
    return got.choices[0].message.tool_calls[0].function.arguments


@check
def embedding():
    got = litellm.embedding(**TOLD, input=["a", "b"], encoding_format="float")
    return [d["embedding"] for d in got.data]


@check
def error_from_the_engine_400():
    return probe.failure(lambda: ask("@fault=400"))


@check
def broken_stream():
    return probe.failure(lambda: list(ask("@fault=reset @at=2", stream=True)))["raised"] is not None


@check
def only_gateway_401():
    got = probe.failure(
        lambda: litellm.completion(**{**TOLD, "api_key": "sk-no"}, messages=[{"role": "user", "content": "x"}])
    )
    assert got == {"raised": "AuthenticationError", "status": 401}, got
    return got


probe.main()
