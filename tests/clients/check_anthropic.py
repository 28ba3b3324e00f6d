"""Anthropic's SDK."""

import anthropic
import probe
from probe import MODEL, check, words

ROOT = probe.BASE_URL.removesuffix("/v1")
client = anthropic.Anthropic(base_url=ROOT, api_key=probe.API_KEY, max_retries=0, timeout=20)
TOOLS = [{"name": "weather", "description": "The weather", "input_schema": probe.WEATHER}]


def ask(text, n=6, by=None, **more):
    return (by or client).messages.create(
        model=MODEL, max_tokens=n, messages=[{"role": "user", "content": text}], **more
    )


@check
def messages_plain():
    got = ask("hello")
    assert got.content[0].text == words("hello", 6)
    return got


@check
def messages_by_bearer():
    return ask("bearer", by=anthropic.Anthropic(base_url=ROOT, auth_token=probe.API_KEY, max_retries=0))


@check
def messages_system():
    return ask("hello", system="be brief")


@check
def messages_streamed():
    events = list(ask("stream", stream=True))
    assert events[-1].type == "message_stop"
    return events


@check
def stream_helper():
    with client.messages.stream(model=MODEL, max_tokens=6, messages=[{"role": "user", "content": "h"}]) as stream:
        text = "".join(stream.text_stream)
        assert text == words("h", 6)
        return stream.get_final_message()


@check
def tools_plain():
    got = ask("tools", tools=TOOLS)
    assert got.content[0].input == {"city": "Oslo", "days": 7}
    return got


@check
def tools_streamed():
    with client.messages.stream(
        model=MODEL, max_tokens=6, tools=TOOLS, messages=[{"role": "user", "content": "t"}]
    ) as stream:
        got = stream.get_final_message()
    assert got.content[0].input == {"city": "Oslo", "days": 7}
    return got


@check
def unicode_content():
    got = ask(probe.UNICODE)
    assert got.content[0].text == words(probe.UNICODE, 6)
    return got


@check
def error_from_the_engine_400():
    return probe.failure(lambda: ask("@fault=400"))


@check
def error_unknown_model():
    return probe.failure(
        lambda: client.messages.create(model="nobody", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    )


@check
def cancel_is_seen_at_the_engine():
    before = probe.engine_stats()["cancelled"]
    stream = ask("@gap_ms=100 cancel", 100, stream=True)
    for i, _ in enumerate(stream):
        if i == 4:
            break
    stream.close()
    assert probe.cancelled_within(2.5, before)
    return True


@check
def only_gateway_401():
    wrong = anthropic.Anthropic(base_url=ROOT, api_key="sk-wrong", max_retries=0)
    got = probe.failure(lambda: ask("x", by=wrong))
    assert got == {"raised": "AuthenticationError", "status": 401}, got
    return got


@check
def only_gateway_cut_is_never_whole():
    got = probe.failure(lambda: list(ask("@fault=cut @at=3", stream=True)))
    assert got["raised"], got
    return True


@check
def only_gateway_error_envelope_is_anthropics():
    try:
        client.messages.create(model="nobody", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    except anthropic.APIStatusError as error:
        body = error.body
        assert body["type"] == "error" and body["error"]["type"] and body["error"]["message"], body
        return body["error"]["type"]
    raise AssertionError("no error")


probe.main()
