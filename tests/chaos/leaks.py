"""What a run must leave nowhere: open files and memory in the gateway's processes, prompts and keys in anything it writes.

`footprint` looks at processes from outside (/proc); `found` looks into files and pages. What they may hold is the caller's.
"""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.chaos.stack import Gateway
from tests.living import contents

PARTS = {"owner": "owner_main", "worker": "serve.worker"}
PAGES = ("/metrics", "/healthz", "/readyz", "/", "/login", "/api/snapshot", "/api/usage", "/api/keys", "/api/ladder")
CANARY = "canary-prompt-6f1d0c5e"  # in each prompt of a run; it is to stand nowhere else
MEMORY_GROWTH_MAX_BYTES = 48 << 20
FILES_GROWTH_MAX = 8


def footprint(gateway: Gateway) -> dict[str, tuple[int, int]]:
    """Return open files and resident bytes of the owner and of the worker that has most of each."""
    assert gateway.process is not None
    pids = {part: gateway.part(word) for part, word in PARTS.items()} | {"parent": [gateway.process.pid]}
    found = {}
    for part, ids in pids.items():
        files = rss = 0
        for pid in ids:
            with contextlib.suppress(OSError):
                files = max(files, len(os.listdir(f"/proc/{pid}/fd")))
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                rss = max(rss, pages * os.sysconf("SC_PAGE_SIZE"))
        found[part] = (files, rss)
    return found


def grown(gateway: Gateway, before: Mapping[str, tuple[int, int]], *, idle_files: int, within_s: float) -> list[str]:
    """Return which process holds more than before, though nobody asks anything any more.

    `idle_files` connections to engines may be kept; what is being closed has `within_s`.
    """
    until_s = time.monotonic() + within_s
    while True:
        wrong = []
        for part, (files, rss) in footprint(gateway).items():
            files_were, rss_was = before[part]
            if files > files_were + idle_files + FILES_GROWTH_MAX:
                wrong.append(f"{part}: {files} open files, {files_were} before")
            if rss > rss_was + MEMORY_GROWTH_MAX_BYTES:
                wrong.append(f"{part}: {rss >> 20} MiB, {rss_was >> 20} before")
        if not wrong or time.monotonic() > until_s:
            return wrong
        time.sleep(0.1)


def pages(gateway: Gateway, token: str = "") -> dict[str, bytes]:
    """Return what the control listener shows to whoever holds a token, or to anyone."""
    seen = {}
    for path in PAGES:
        wire = urllib.request.Request(str(gateway.ready["control"]) + path)
        if token:
            wire.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(wire, timeout=5) as answer:
                seen[path] = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                seen[path] = error.read()
    return seen


def found(words: Iterable[str], folders: Iterable[Path], more: Mapping[str, bytes]) -> list[str]:
    """Return where one of the words stands: in a file below the folders (or the file itself), or in `more`, by name."""
    secret = [word.encode() for word in words]
    assert all(len(word) >= 12 for word in secret), "a short word stands anywhere"
    wrong = []

    def look(name: str, content: bytes) -> None:
        wrong.extend(f"{word[:6]!r}… stands in {name}" for word in secret if word in content)

    for folder in folders:
        for name, content in ({str(folder): folder.read_bytes()} if folder.is_file() else contents(folder)).items():
            look(name, content)
    for name, content in more.items():
        look(name, content)
    return wrong
