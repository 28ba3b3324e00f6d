"""pydantic-ai."""

import asyncio

import probe
from probe import MODEL, check, words
from pydantic import BaseModel
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=probe.BASE_URL, api_key=probe.API_KEY))
SETTINGS = ModelSettings(max_tokens=5)


@check
def run():
    got = Agent(model, model_settings=SETTINGS).run_sync("hello")
    assert got.output == words("hello", 5)
    return got.output


@check
def stream():
    async def go():
        async with Agent(model, model_settings=SETTINGS).run_stream("hello") as got:
            return "".join([t async for t in got.stream_text(delta=True, debounce_by=None)])

    text = asyncio.run(go())
    assert text == words("hello", 5)
    return text


class Weather(BaseModel):
    city: str
    days: int


@check
def structured():
    got = Agent(model, output_type=Weather).run_sync("w")
    assert got.output == Weather(city="Oslo", days=7)
    return got.output.model_dump()


@check
def error_from_the_engine_400():
    return probe.failure(lambda: Agent(model, model_settings=SETTINGS).run_sync("@fault=400"))


probe.main()
