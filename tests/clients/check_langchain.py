"""langchain-openai."""

import probe
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from probe import MODEL, check, words
from pydantic import BaseModel

TOLD = {"base_url": probe.BASE_URL, "api_key": probe.API_KEY, "max_retries": 0}
model = ChatOpenAI(model=MODEL, max_tokens=5, timeout=20, **TOLD)


@check
def invoke():
    got = model.invoke([SystemMessage("s"), HumanMessage("hello")])
    assert got.content == words("hello", 5)
    return got.content, got.usage_metadata


@check
def stream():
    text = "".join(c.content for c in model.stream("hello"))
    assert text == words("hello", 5)
    return text


@check
def stream_usage():
    whole = None
    for chunk in ChatOpenAI(model=MODEL, max_tokens=5, stream_usage=True, **TOLD).stream("hello"):
        whole = chunk if whole is None else whole + chunk
    assert whole.usage_metadata["output_tokens"] == 5
    return whole.usage_metadata


@check
def batch():
    got = [m.content for m in model.batch(["a", "b", "c", "d"])]
    assert got == [words(t, 5) for t in "abcd"]
    return got


@check
def tools():
    got = model.bind_tools(probe.TOOLS).invoke("t")
    return got.tool_calls[0]["name"], got.tool_calls[0]["args"]


class Weather(BaseModel):
    city: str
    days: int


@check
def structured():
    big = ChatOpenAI(model=MODEL, max_tokens=64, **TOLD)
    return big.with_structured_output(Weather, method="json_schema").invoke("w").model_dump()


@check
def embeddings():
    return OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **TOLD).embed_documents(["a", "b"])


@check
def error_from_the_engine_400():
    return probe.failure(lambda: model.invoke("@fault=400"))


@check
def broken_stream():
    return probe.failure(lambda: list(model.stream("@fault=reset @at=2")))["raised"] is not None


probe.main()
