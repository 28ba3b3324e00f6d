"""A short form of `make fuzz-serve`: hostile requests, answers and streams against the real parsers, in process."""

from __future__ import annotations

from tests.serve_hostile import fuzz


def test_no_request_and_no_answer_escapes() -> None:
    """Whatever a client sends and an engine says: HTTP comes back, each opened request ends once, no count leaks."""
    said: list[str] = []
    assert fuzz.run("request", 0, 1500, said.append) == 0, "\n".join(said)


def test_a_stream_is_read_the_same_in_any_pieces() -> None:
    """Tokens and verdict of an event stream do not depend on how the network cuts it."""
    said: list[str] = []
    assert fuzz.run("sse", 0, 600, said.append) == 0, "\n".join(said)
