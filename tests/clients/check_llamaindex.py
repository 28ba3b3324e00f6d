"""llama-index, OpenAILike."""

import probe
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from probe import MODEL, check, words

model = OpenAILike(
    model=MODEL, api_base=probe.BASE_URL, api_key=probe.API_KEY, is_chat_model=True, max_tokens=5, max_retries=0
)


@check
def chat():
    got = model.chat([ChatMessage(role="user", content="hello")])
    assert got.message.content == words("hello", 5)
    return got.message.content


@check
def stream_chat():
    text = "".join(c.delta or "" for c in model.stream_chat([ChatMessage(role="user", content="hello")]))
    assert text == words("hello", 5)
    return text


@check
def complete():
    return str(model.complete("hello"))


@check
def complete_legacy():
    return str(
        OpenAILike(
            model=MODEL, api_base=probe.BASE_URL, api_key=probe.API_KEY, is_chat_model=False, max_tokens=5
        ).complete("hello")
    )


@check
def error_from_the_engine_400():
    return probe.failure(lambda: model.chat([ChatMessage(role="user", content="@fault=400")]))


@check
def broken_stream():
    ask = [ChatMessage(role="user", content="@fault=reset @at=2")]
    return probe.failure(lambda: list(model.stream_chat(ask)))["raised"] is not None


probe.main()
