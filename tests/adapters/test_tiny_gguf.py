"""The model that Baseload makes itself: equal bytes for equal numbers, any text a prompt, answers of a chosen length."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from baseload.adapters import tiny_gguf
from baseload.adapters.engine_process import ProcessProvisioner
from baseload.adapters.http_small import ask
from baseload.adapters.tiny_gguf import TinySpec
from baseload.errors import InputError
from baseload.ports import EngineStart

pytest.importorskip("xllamacpp")
SMALL = TinySpec(mean_answer_tokens=24.0, seed=11)


def test_equal_numbers_give_equal_bytes(tmp_path: Path):
    """The same numbers make the same file, byte for byte; another seed makes another."""
    for name, spec in (("a", TinySpec()), ("b", TinySpec()), ("c", TinySpec(seed=8))):
        tiny_gguf.write(tmp_path / name, spec)
    a, b, c = (tiny_gguf.file_digest(tmp_path / name) for name in "abc")

    assert a == b != c
    assert a.startswith("sha256:")
    assert (tmp_path / "a").stat().st_size < 4_000_000


def test_the_file_is_made_once_whoever_asks(tmp_path: Path):
    """Many that ask at once find one whole file, and nothing half-written beside it."""
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(tiny_gguf.cached(folder=tmp_path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(paths)) == 1
    assert list(tmp_path.iterdir()) == [paths[0]]
    assert tiny_gguf.cached(SMALL, folder=tmp_path) != paths[0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    """Where there is no room for the model, a sentence says which variable names another folder."""
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="BASELOAD_CACHE"):
        tiny_gguf.cached(folder=tmp_path / "file" / "models")


def test_any_text_is_a_prompt_and_answers_are_words_of_the_chosen_length(tmp_path: Path):
    """Scripts, emoji, control characters and marks tokenise, at most a token a byte; the mean length holds."""
    path = tiny_gguf.cached(SMALL, folder=tmp_path)
    texts = [
        "plain words",
        "Grüße, 你好, привет, 👩‍🔬🇳🇴",
        "\u0000\u0001\t\n\\",
        "<s></s><unk><0x41>",
        "a" * 3000,
        "\u2581",
        " ",
    ]

    async def talk() -> tuple[list[dict[str, Any]], list[int]]:
        provisioner = ProcessProvisioner(tmp_path)
        engine = await provisioner.start(EngineStart(name="t", kind="embedded", gguf=str(path), slots=8))

        async def chat(text: str, **more: Any) -> dict[str, Any]:
            body = json.dumps({"messages": [{"role": "user", "content": text}], **more}).encode()
            answer = await ask(f"{engine.url}/v1/chat/completions", body=body, timeout_s=20.0)
            assert answer.status == 200, answer
            return json.loads(answer.body)

        answers = [await chat(text) for text in texts]
        many = await asyncio.gather(*(chat(f"{i}", temperature=0.8) for i in range(160)))
        await provisioner.close()
        return answers, [answer["usage"]["completion_tokens"] for answer in many]

    answers, lengths = asyncio.run(talk())

    for text, answer in zip(texts, answers, strict=True):
        body_bytes = len(json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode())
        assert answer["usage"]["prompt_tokens"] <= body_bytes
        assert set(answer["choices"][0]["message"]["content"].split()) <= set(tiny_gguf.WORDS)
    assert 16 < sum(lengths) / len(lengths) < 34  # three standard errors around 24
    assert len(set(lengths)) > 20
