"""Clients, unchanged, first at an engine directly and then through the gateway: what each sees must be the same.

    python -m tests.clients.run [--only openai,anthropic] [--setup]

Each client lives in an environment of its own under `.clients/`, made once, by name and version (`CLIENTS`). A check's result
through the gateway may differ from the direct one only by what `ADDED` lists: the documented additions. Checks named
`only_gateway_…` are for the gateway alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.stack import Gateway, MockEngine, fleet_text

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent / ".clients"
ADDED = frozenset(("cost", "price", "energy_wh", "carbon_g", "baseload"))  # in `usage`; documented in docs/serve.md
LIMITS = "first_byte_s: 3, token_s: 2, request_s: 60, drain_s: 1"


@dataclass(frozen=True)
class Client:
    """A client: its script, and what is installed for it."""

    script: str
    packages: tuple[str, ...]
    node: bool = False


NODE = ("openai@7.55.0", "ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7")
CLIENTS: Mapping[str, Client] = {
    "openai": Client("check_openai.py", ("openai==3.52.0",)),
    "anthropic": Client("check_anthropic.py", ("anthropic==2.11.0",)),
    "litellm": Client("check_litellm.py", ("litellm==1.106.2", "mcp==2.3.0")),
    "langchain": Client("check_langchain.py", ("langchain-openai==1.7.3",)),
    "llama-index": Client("check_llamaindex.py", ("llama-index-llms-openai-like==0.8.1",)),
    "pydantic-ai": Client("check_pydanticai.py", ("pydantic-ai-slim[openai]==2.68.0",)),
    "openai-node": Client("check_openai_node.mjs", NODE, node=True),
    "vercel-ai": Client("check_vercel.mjs", NODE, node=True),
}


def program(client: Client, name: str) -> Path:
    """Return the program that runs a client's script."""
    return Path(shutil.which("node") or "node") if client.node else HOME / name / "bin" / "python"


def setup(name: str) -> str:
    """Make a client's environment where it is not there yet; return '' or why it could not be."""
    client = CLIENTS[name]
    HOME.mkdir(exist_ok=True)
    if client.node:
        return _setup_node()
    stamp = HOME / name / "installed"
    told = "\n".join(client.packages)
    if stamp.exists() and stamp.read_text() == told:
        return ""
    python = HOME / name / "bin" / "python"
    steps = [
        [sys.executable, "-m", "venv", str(HOME / name)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *client.packages],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(step[1:5])}: {done.stderr.strip()[-200:]}"
    stamp.write_text(told)
    return ""


def _setup_node() -> str:
    if shutil.which("npm") is None:
        return "npm is not installed"
    folder = HOME / "node"
    stamp = folder / "installed"
    told = "\n".join(NODE)
    if stamp.exists() and stamp.read_text() == told:
        return ""
    folder.mkdir(exist_ok=True)
    step = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--save-exact", *NODE]
    done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"npm install: {(done.stderr or done.stdout).strip()[-200:]}"
    stamp.write_text(told)
    return ""


def run_script(name: str, env: Mapping[str, str], timeout_s: float = 180.0) -> dict[str, dict[str, Any]]:
    """Run a client's script; return its checks by name."""
    client = CLIENTS[name]
    folder = HERE
    if client.node:  # node looks for packages beside the script
        folder = HOME / "node"
        for part in ("probe.mjs", client.script):
            shutil.copyfile(HERE / part, folder / part)
    done = subprocess.run(
        [str(program(client, name)), str(folder / client.script)], capture_output=True, text=True, check=False,
        timeout=timeout_s, env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore", **env},
    )  # fmt: skip
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"check"'):
            told = json.loads(line)
            found[told["check"]] = told
    if not found:
        found["starts"] = {"check": "starts", "ok": False, "saw": done.stderr[-500:]}
    return found


def without_additions(value: Any) -> Any:
    """Return what a client saw, without the documented additions."""
    if isinstance(value, dict):
        return {k: without_additions(v) for k, v in value.items() if k not in ADDED}
    if isinstance(value, list):
        return [without_additions(v) for v in value]
    return value


def first_difference(a: Any, b: Any, where: str = "") -> str:
    """Return where two values differ first, or ''.

    >>> first_difference({"a": [1, 2]}, {"a": [1, 3]})
    '.a[1]: 2 is 3'
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if key not in a or key not in b:
                return f"{where}.{key}: {'added' if key in b else 'lost'}"
            found = first_difference(a[key], b[key], f"{where}.{key}")
            if found:
                return found
        return ""
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{where}: {len(a)} items are {len(b)}"
        return next((d for i in range(len(a)) if (d := first_difference(a[i], b[i], f"{where}[{i}]"))), "")
    return "" if a == b else f"{where}: {a!r} is {b!r}"


def compare(direct: dict[str, dict[str, Any]], through: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (check, verdict, why): ok, WRONG, or `both fail` where the engine itself fails it too."""
    found = []
    for name in through:
        there, here = direct.get(name), through[name]
        if name.startswith("only_gateway_") or there is None:
            found.append((name, "ok" if here["ok"] else "WRONG", "" if here["ok"] else str(here["saw"])))
        elif not there["ok"]:
            found.append((name, "both fail" if not here["ok"] else "ok", str(there["saw"])))
        elif not here["ok"]:
            found.append((name, "WRONG", str(here["saw"])))
        else:
            why = first_difference(without_additions(there["saw"]), without_additions(here["saw"]))
            found.append((name, "WRONG" if why else "ok", why))
    found += [(name, "WRONG", "never ran through the gateway") for name in direct if name not in through]
    return found


class Rig:
    """An engine that answers fully, and a gateway before it."""

    def __init__(self, folder: Path, *, gateway: bool = True) -> None:
        self.engine = MockEngine(folder / "engine.truth", words=("--model", "chat", "--tokens", "2000")).start()
        self.gateway: Gateway | None = None
        if gateway:
            state = folder / "state"
            state.mkdir(mode=0o700)
            fleet = folder / "fleet.yaml"
            fleet.write_text(fleet_text([self.engine.url], [], workers=1, limits=LIMITS))
            self.gateway = Gateway(fleet, state).start()
            self.key = self.gateway.key("acme")
            self.limited = self.gateway.key("crowd", "--rpm", "2")

    def env(self, *, direct: bool) -> dict[str, str]:
        """Return what a script is told."""
        told = {"ENGINE_STATS": self.engine.url + "/__stats", "MODEL": "chat"}
        if direct or self.gateway is None:
            return {**told, "BASE_URL": self.engine.url + "/v1", "API_KEY": "none"}
        base = f"http://127.0.0.1:{self.gateway.port}/v1"
        return {**told, "BASE_URL": base, "API_KEY": self.key, "GATEWAY": "1", "LIMITED_KEY": self.limited}

    def wait(self, timeout_s: float = 30.0) -> None:
        """Wait until the gateway sees the engine: what a client did to it directly may have made it look ill."""
        assert self.gateway is not None
        told = self.env(direct=False)
        body = b'{"model":"chat","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'
        wire = urllib.request.Request(
            told["BASE_URL"] + "/chat/completions", data=body,
            headers={"authorization": f"Bearer {self.key}", "content-type": "application/json"},
        )  # fmt: skip
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError), urllib.request.urlopen(wire, timeout=5):
                return
            time.sleep(0.5)

    def end(self) -> None:
        """Stop both."""
        if self.gateway is not None:
            self.gateway.stop()
        self.engine.kill()


def main(argv: list[str] | None = None) -> int:
    """Run the clients; return 1 where one sees a difference."""
    p = argparse.ArgumentParser(description="Clients, directly and through the gateway.")
    p.add_argument("--only", help="client,client,…")
    p.add_argument("--setup", action="store_true", help="only make the environments")
    p.add_argument("--direct", action="store_true", help="only directly at the engine")
    options = p.parse_args(argv)
    names = options.only.split(",") if options.only else list(CLIENTS)
    missing = {name: why for name in names if (why := setup(name))}
    if options.setup:
        for name, why in missing.items():
            print(f"{name:12s} not set up: {why}")
        return 1 if missing else 0
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="baseload-clients-") as folder:
        rig = Rig(Path(folder), gateway=not options.direct)
        try:
            for name in names:
                wrong += report(name, missing.get(name, ""), rig, direct_only=options.direct)
        finally:
            rig.end()
    return 1 if wrong else 0


def report(name: str, missing: str, rig: Rig, *, direct_only: bool) -> int:
    """Run one client both ways and print; return the number of differences."""
    if missing:
        print(f"{name:12s} not run: {missing}")
        return 0
    direct = run_script(name, rig.env(direct=True))
    if direct_only:
        bad = [n for n, c in direct.items() if not c["ok"] and not n.startswith("only_gateway_")]
        print(f"{name:12s} direct: {len(direct) - len(bad)} of {len(direct)}; failing: {bad}")
        return len(bad)
    rig.wait()
    verdicts = compare(direct, run_script(name, rig.env(direct=False)))
    good = sum(v == "ok" for _, v, _ in verdicts)
    print(f"{name:12s} {good} of {len(verdicts)} as at the engine, or better")
    for check, verdict, why in verdicts:
        if verdict != "ok":
            print(f"    {verdict:9s} {check}: {why[:300]}")
    return sum(v == "WRONG" for _, v, _ in verdicts)


if __name__ == "__main__":
    sys.exit(main())
