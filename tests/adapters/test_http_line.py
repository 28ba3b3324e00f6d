"""A kept connection gives the answers that a fresh one gives, and is replaced when the server has closed it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.adapters.http_line import Line, _Reading
from baseload.adapters.http_small import Answer, HttpProblem

HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS = [
    (HEAD + b"content-length: 5\r\n\r\nhello", Answer(200, b"hello"), True),
    (HEAD + b"content-length: 0\r\n\r\n", Answer(200, b""), True),
    (HEAD + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", Answer(200, b"hello"), False),
    (b"HTTP/1.0 404 no\r\ncontent-length: 2\r\n\r\nno", Answer(404, b"no"), False),
    (b"HTTP/1.1 100 wait\r\n\r\n" + HEAD + b"content-length: 1\r\n\r\nx", Answer(200, b"x"), True),
    (HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", Answer(200, b"hello"), True),
    (HEAD + b"content-length: 9\r\n\r\nhello you", Answer(200, b"hello yo", whole=False), False),
    (HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\nhello you", Answer(200, b"hello yo", whole=False), False),
]


@settings(max_examples=40)
@given(which=st.sampled_from(ANSWERS), data=st.data())
def test_an_answer_is_the_same_however_it_is_cut(which: tuple[bytes, Answer, bool], data: st.DataObject):
    """Wherever the network cuts the bytes; and no part of an answer is an answer."""
    raw, expected, keeps = which
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    reading, found = _Reading(8), None
    for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found = found or reading.feed(raw[begin:end], ended=False)
    assert found == expected
    assert not reading.keeps or keeps


@pytest.mark.parametrize(
    "raw",
    [b"SSH-2.0", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
     HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", HEAD + b"content-length: 5\r\n\r\nhell", b"x" * 20_000],
)  # fmt: skip
def test_what_is_no_answer_is_refused(raw: bytes):
    """Not HTTP, lengths that are none, chunks that end elsewhere, an end too early, an endless head."""
    with pytest.raises((HttpProblem, ValueError)):
        assert _Reading(100).feed(raw, ended=True) is None


def ask(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], *, keep: bool) -> list[object]:
    """Ask three times; return the answers, and how many connections were made."""

    async def work() -> list[object]:
        n, tasks = 0, set[asyncio.Task[object]]()

        async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal n
            n += 1
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(taken, "127.0.0.1", 0)
        line = Line(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {})
        found: list[object] = []
        for path in ("/a", "/b", "/c"):
            found.append((await line.get(path, timeout_s=5.0, body_bytes_max=100, keep=keep)).body)
            await asyncio.sleep(0.02)
        line.close()
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [*found, n]

    return asyncio.run(work())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request on a connection with its path."""
    while True:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        writer.write(HEAD + b"content-length: %d\r\n\r\n%b" % (len(path), path))


async def echo_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, and close without a word."""
    path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
    writer.write(HEAD + b"content-length: %d\r\n\r\n%b" % (len(path), path))


def test_a_connection_is_kept_while_the_server_keeps_it():
    """One connection for three questions; one each where it is not to be kept, or the server closes it unasked."""
    assert ask(echo, keep=True) == [b"/a", b"/b", b"/c", 1]
    assert ask(echo, keep=False) == [b"/a", b"/b", b"/c", 3]
    assert ask(echo_once, keep=True) == [b"/a", b"/b", b"/c", 3]
