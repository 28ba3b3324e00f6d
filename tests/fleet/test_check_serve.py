"""The live side of a fleet file: what cannot be listened on or reached is named, with its key and the mend."""

from __future__ import annotations

import pytest

from baseload.fleet import check
from baseload.fleet.live import host_and_port
from baseload.fleet.load import loads
from tests.fleet.test_check import GOOD

WRONG = {
    "listen: '8080'": ("serve.listen", "has no port"),
    "listen: '::1:80'": ("serve.listen", "brackets"),
    "listen: '127.0.0.1:99999'": ("serve.listen", "65535"),
    "control: '127.0.0.1:8080'": ("serve.control", "gateway's own"),
    "tls_cert: missing.pem": ("serve.tls_key", "is missing"),
    "ledger_env: 'postgresql://u:p@h/d'": ("serve.ledger_env", "environment variable"),
    "engines: {chatt: {}}": ("serve.engines.chatt", "no deployment"),
    "engines: {chat: {kind: external}}": ("serve.engines.chat.urls", "is empty"),
    "engines: {chat: {kind: external, urls: {madrid: ['http://a:1']}}}": ("serve.engines.chat.urls.madrid", "not run"),
    "engines: {chat: {kind: external, urls: {oslo: ['file:///etc']}}}": ("serve.engines.chat.urls.oslo", "no http"),
    "engines: {chat: {kind: external, urls: {oslo: ['http://u:p@a']}}}": ("serve.engines.chat.urls.oslo", "key_env"),
    "engines: {chat: {kind: external, urls: {oslo: ['http://a', 'http://a']}}}": (
        "serve.engines.chat.urls.oslo",
        "twice",
    ),
    "engines: {chat: {urls: {oslo: ['http://a']}}}": ("serve.engines.chat.urls", "emulated engines have none"),
    "engines: {chat: {kind: embedded, gguf: none.gguf}}": ("serve.engines.chat.gguf", "no file"),
    "engines: {chat: {model_digest: abc}}": ("serve.engines.chat.model_digest", "SHA-256"),
}


@pytest.mark.parametrize("text", WRONG)
def test_each_mistake_in_the_live_section_is_named(text: str) -> None:
    """Key, what and mend stand in the problem, and its line is that of the section."""
    problems = check.problems(loads(f"{GOOD}serve: {{{text}}}\n"))
    key, words = WRONG[text]
    assert any(p.key.startswith(key) and words in p.what + p.mend and p.line for p in problems), problems


def test_a_live_section_that_can_be_served_has_no_problem() -> None:
    """External engines in both sites, one URL a replica, and another port."""
    text = (
        "serve: {listen: '[::1]:0', control: ':0', workers: 4, engines: "
        "{chat: {kind: external, key_env: ENGINE_KEY, urls: {oslo: ['http://10.0.0.5:8000', 'https://b/v']}}}}\n"
    )
    assert check.problems(loads(GOOD + text)) == []


def test_an_address_without_a_host_means_loopback() -> None:
    """Nothing listens on all addresses unless its owner writes so."""
    assert host_and_port(":8080") == ("127.0.0.1", 8080)
