"""openai-python."""

import json
import threading
import time

import openai
import probe
from probe import MODEL, check, words
from pydantic import BaseModel

client = openai.OpenAI(base_url=probe.BASE_URL, api_key=probe.API_KEY, max_retries=0, timeout=20)


def chat(text, n=6, **more):
    return client.chat.completions.create(
        model=MODEL, max_tokens=n, messages=[{"role": "user", "content": text}], **more
    )


def streamed(text, n=6, **more):
    return list(chat(text, n, stream=True, **more))


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@check
def models_list():
    found = [m.id for m in client.models.list()]
    assert MODEL in found
    return found


@check
def models_retrieve():
    return probe.failure(lambda: client.models.retrieve("no-such-model-at-all"))["raised"] is not None


@check
def chat_plain():
    got = chat("hello")
    assert got.choices[0].message.content == words("hello", 6)
    return got


@check
def chat_headers():
    got = client.chat.completions.with_raw_response.create(
        model=MODEL, max_tokens=2, messages=[{"role": "user", "content": "x"}]
    )
    return {"type": got.headers["content-type"].split(";")[0], "status": got.status_code}


@check
def chat_async():
    import asyncio

    async def go():
        async with openai.AsyncOpenAI(base_url=probe.BASE_URL, api_key=probe.API_KEY, max_retries=0) as c:
            got = await c.chat.completions.create(
                model=MODEL, max_tokens=3, messages=[{"role": "user", "content": "async"}]
            )
            stream = await c.chat.completions.create(
                model=MODEL, max_tokens=3, stream=True, messages=[{"role": "user", "content": "async"}]
            )
            return got, [x async for x in stream]

    return asyncio.run(go())


@check
def chat_unicode():
    got = chat(probe.UNICODE)
    assert got.choices[0].message.content == words(probe.UNICODE, 6)
    return got


@check
def chat_parts():
    got = client.chat.completions.create(
        model=MODEL, max_tokens=2,
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "parts"}]}],
    )  # fmt: skip
    assert got.choices[0].message.content == words("parts", 2)
    return got


@check
def chat_max_completion_tokens():
    got = client.chat.completions.create(
        model=MODEL, max_completion_tokens=4, messages=[{"role": "user", "content": "mct"}]
    )
    assert got.usage.completion_tokens == 4
    return got


@check
def chat_no_max_tokens():
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "free"}])


@check
def chat_unknown_parameters():
    return chat("extra", extra_body={"top_k": 3, "min_p": 0.1, "chat_template_kwargs": {"x": True}})


@check
def stream_plain():
    chunks = streamed("stream")
    assert text_of(chunks) == words("stream", 6)
    assert not any(c.usage for c in chunks), "usage that nobody asked for"
    return chunks


@check
def stream_usage_once():
    chunks = streamed("usage", stream_options={"include_usage": True})
    told = [c for c in chunks if c.usage]
    assert len(told) == 1 and told[0].choices == [] and told[0] is chunks[-1]
    return chunks


@check
def stream_helper():
    with client.chat.completions.stream(
        model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "helper @n=4"}]
    ) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_completion()


@check
def stream_long():
    got = text_of(streamed("long", 1500))
    assert got == words("long", 1500)
    return len(got)


@check
def tools_plain():
    got = chat("tools", tools=probe.TOOLS)
    call = got.choices[0].message.tool_calls[0].function
    assert json.loads(call.arguments) == {"city": "Oslo", "days": 7}
    return got


@check
def tools_streamed():
    chunks = streamed("tools", tools=probe.TOOLS, tool_choice="auto")
    told = "".join(
        (c.choices[0].delta.tool_calls[0].function.arguments or "")
        for c in chunks
        if c.choices and c.choices[0].delta.tool_calls
    )
    assert json.loads(told) == {"city": "Oslo", "days": 7}
    return chunks


@check
def tools_answered():
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    return client.chat.completions.create(
        model=MODEL, max_tokens=3, tools=probe.TOOLS,
        messages=[{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]},
                  {"role": "tool", "tool_call_id": "call_1", "content": "rain"}],
    )  # fmt: skip


class Weather(BaseModel):
    city: str
    days: int


@check
def schema_parse():
    got = client.chat.completions.parse(
        model=MODEL, max_tokens=64, messages=[{"role": "user", "content": "schema"}], response_format=Weather
    )
    assert got.choices[0].message.parsed == Weather(city="Oslo", days=7)
    return got


@check
def schema_streamed():
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": probe.WEATHER, "strict": True}}
    assert json.loads(text_of(streamed("schema", 64, response_format=form))) == {"city": "Oslo", "days": 7}
    return True


@check
def json_object():
    return chat("json", 20, response_format={"type": "json_object"})


@check
def completions_plain():
    got = client.completions.create(model=MODEL, prompt="legacy", max_tokens=4)
    assert got.choices[0].text == words("legacy", 4)
    return got


@check
def completions_streamed():
    return list(client.completions.create(model=MODEL, prompt="legacy", max_tokens=4, stream=True))


@check
def embeddings_one():
    return client.embeddings.create(model=MODEL, input="embed", encoding_format="float")


@check
def embeddings_many():
    got = client.embeddings.create(model=MODEL, input=["a", "b", "c"], encoding_format="float")
    assert [d.index for d in got.data] == [0, 1, 2]
    return got


@check
def responses_plain():
    got = client.responses.create(model=MODEL, input="respond", max_output_tokens=4)
    assert got.output_text == words("respond", 4)
    return got


@check
def responses_streamed():
    events = list(client.responses.create(model=MODEL, input="respond", max_output_tokens=4, stream=True))
    assert events[-1].type == "response.completed"
    return events


def of(**more):
    return openai.OpenAI(**{"base_url": probe.BASE_URL, "api_key": probe.API_KEY, "max_retries": 0, **more})


@check
def error_unknown_model():
    return probe.failure(
        lambda: client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    )


@check
def error_from_the_engine_400():
    return probe.failure(lambda: chat("@fault=400"))


@check
def error_unknown_path():
    return probe.failure(lambda: client.post("/nothing/here", cast_to=object))


@check
def broken_stream_reset():
    return probe.failure(lambda: streamed("@fault=reset @at=3"))["raised"] is not None


@check
def broken_stream_fin():
    return probe.failure(lambda: streamed("@fault=fin @at=3"))["raised"] is not None


@check
def broken_stream_error_event():
    got = probe.failure(lambda: streamed("@fault=errchunk @at=3"))
    assert got["raised"] == "APIError", got
    return got


@check
def cancel_is_seen_at_the_engine():
    before = probe.engine_stats()["cancelled"]
    stream = chat("@gap_ms=100 cancel", 100, stream=True)
    for i, _ in enumerate(stream):
        if i == 3:
            break
    stream.close()
    assert probe.cancelled_within(2.5, before)
    return True


@check
def timeout_is_seen_at_the_engine():
    before = probe.engine_stats()["cancelled"]
    got = probe.failure(lambda: of(timeout=0.5).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "@ttft_ms=4000 late"}]))  # fmt: skip
    assert got["raised"] == "APITimeoutError", got
    assert probe.cancelled_within(2.5, before)
    return got


@check
def body_of_2_mib():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * (1 << 18)}}
    parts = [{"type": "text", "text": "big"}, image]
    got = client.chat.completions.create(model=MODEL, max_tokens=2, messages=[{"role": "user", "content": parts}])
    assert got.choices[0].message.content == words("big", 2)
    return got


@check
def text_of_300_kib():
    text = "palabra " * 40_000
    got = chat(text, 2)
    assert got.choices[0].message.content == words(text, 2)
    return got.usage.prompt_tokens


@check
def connection_is_reused():
    for i in range(20):
        assert chat(f"again {i}", 1).choices[0].message.content == words(f"again {i}", 1)
    return True


@check
def no_cross_talk_of_64_streams():
    wrong, began_s = [], time.monotonic()

    def one(i):
        try:
            text = f"stream {i} @gap_ms=2"
            if text_of(streamed(text, 40)) != words(text, 40):
                wrong.append(i)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert time.monotonic() - began_s < 30
    return True


@check
def only_gateway_401():
    got = probe.failure(lambda: of(api_key="sk-wrong").chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}]))  # fmt: skip
    assert got == {"raised": "AuthenticationError", "status": 401}, got
    return got


@check
def only_gateway_413():
    text = "x" * (18 << 20)
    got = probe.failure(lambda: client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}]))  # fmt: skip
    assert got["status"] == 413 or got["raised"] == "APIConnectionError", got
    return True


@check
def only_gateway_404_model():
    got = probe.failure(lambda: client.chat.completions.create(
        model="nobody", messages=[{"role": "user", "content": "x"}]))  # fmt: skip
    assert got == {"raised": "NotFoundError", "status": 404}, got
    return got


@check
def only_gateway_says_what_it_cost():
    usage = chat("cost").usage.model_dump()
    for name in ("cost", "price", "energy_wh", "carbon_g"):
        assert isinstance(usage[name], (int, float)) and usage[name] >= 0, (name, usage)
    assert usage["baseload"]["currency"], usage
    return sorted(usage)


@check
def only_gateway_says_where():
    got = client.chat.completions.with_raw_response.create(
        model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "x"}]
    )
    told = {k.lower() for k in got.headers if k.lower().startswith("x-baseload-")}
    for name in ("request-id", "site", "jurisdiction", "replica", "engine"):
        assert f"x-baseload-{name}" in told, (name, told)
    return sorted(told)


@check
def only_gateway_cut_is_never_whole():
    got = probe.failure(lambda: streamed("@fault=cut @at=3"))
    assert got["raised"] == "APIError", got
    return got


@check
def only_gateway_stall_ends():
    got = probe.failure(lambda: streamed("@fault=stall @at=3"))
    assert got["raised"] == "APIError", got
    return got


@check
def only_gateway_hides_a_dead_start():
    got = probe.failure(lambda: chat("@fault=reset0"))
    assert got["status"] in (502, 503, 504), got
    return got


@check
def only_gateway_usage_once_though_nobody_asked():
    chunks = streamed("quiet @fault=nousage")
    assert text_of(chunks) == words("quiet @fault=nousage", 6)
    assert not any(c.usage for c in chunks)
    return True


@check
def only_gateway_429():
    key = probe.os.environ.get("LIMITED_KEY", "")
    if not key:
        return None
    limited = of(api_key=key)
    got = [
        probe.failure(
            lambda: limited.chat.completions.create(
                model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "x"}]
            )
        )
        for _ in range(6)
    ]
    assert {"raised": "RateLimitError", "status": 429} in got, got
    return True


probe.main()
