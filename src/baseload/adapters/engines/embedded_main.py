"""An embedded engine as a process: llama.cpp's own server over a GGUF file, on loopback, one thread.

    python -m baseload.adapters.engines.embedded_main --gguf model.gguf --slots 4 --engines 1

Prints one JSON line when ready ({"ready": true, "kind": "embedded", "pid", "ports", "model_digest", ...}), and ends at
SIGTERM or when its parent goes. It speaks what llama.cpp's server speaks: chat, completions, embeddings, responses,
messages, /health, /metrics, /slots. Who starts and watches it is `engine_process.py`; the model is `tiny_gguf.py`.

One thread an engine, without polling: two engines that spin on two busy cores finish nothing at all.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from baseload.adapters.engines.process import die_with_parent, say_ready, when_stdin_ends

BATCH_TOKENS = 512  # of prompts, computed at once: at least so many
LONGEST_ANSWER_TOKENS = 1024  # where the client sets no limit: at temperature 0 a random model may never end
QUIET = 0  # llama.cpp's log level: nothing, prompts least of all


def main(arguments: list[str] | None = None) -> int:
    """Run the engines until told to end; return the exit code."""
    wants = _parser().parse_args(arguments)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if not wants.orphan:
        die_with_parent()
        when_stdin_ends(ended.set)
    gguf = Path(wants.gguf)
    if not gguf.is_file():
        sys.stderr.write(f"{gguf}: no such model file\n")
        return 2
    started_s = time.monotonic()
    try:
        engine = importlib.import_module("xllamacpp")
    except ImportError:
        sys.stderr.write("xllamacpp is not installed; pip install 'baseload[engine]'\n")
        return 3
    servers = [_serve(engine, wants, gguf, i) for i in range(wants.engines)]
    say_ready(
        kind="embedded",
        ports=[_port(server) for server in servers],
        model_digest=wants.digest or _digest(gguf),
        engine=f"llama.cpp (xllamacpp {engine.__version__})",
        load_s=round(time.monotonic() - started_s, 3),
    )
    ended.wait()
    servers.clear()  # frees the ports; what is running is cut
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True, help="model file")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; further engines take free ones")
    parser.add_argument("--engines", type=int, default=1, help="engines in this process, a port each")
    parser.add_argument("--slots", type=int, default=4, help="sequences at once in each engine")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute, an engine")
    parser.add_argument("--context", type=int, default=4096, help="tokens of context of each slot")
    parser.add_argument("--http-threads", type=int, default=0, help="connections at once; 0: by slots")
    parser.add_argument("--alias", default="tiny", help="name of the model")
    parser.add_argument("--digest", default="", help="the model file's digest, where known; computed where absent")
    parser.add_argument("--orphan", action="store_true", help="stay when the parent goes")
    return parser


def _serve(engine: Any, wants: argparse.Namespace, gguf: Path, i: int) -> Any:
    """Return a running server."""
    params = engine.CommonParams()
    params.model.path = str(gguf)
    params.model_alias = {wants.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = wants.port if i == 0 else 0
    params.n_parallel = wants.slots
    params.n_ctx = wants.context * wants.slots
    # With pooling, llama.cpp lays out its largest batch evenly over all sequences, and aborts where that leaves a rest.
    params.n_ubatch = wants.slots * -(-BATCH_TOKENS // wants.slots)
    params.n_batch = 4 * params.n_ubatch
    params.n_predict = LONGEST_ANSWER_TOKENS
    # A kept-alive connection holds one of its threads: without spares, pooled connections lock the next client out.
    params.n_threads_http = wants.http_threads or 4 * wants.slots + 32
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = wants.threads
        cpu.poll = 0
    params.embedding = True
    params.pooling_type = engine.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.fit_params = False
    params.cache_ram_mib = 0
    params.n_gpu_layers = 0
    params.verbosity = QUIET
    params.use_jinja = True
    # As the weights were made for: the end token is as likely as a word, and nothing is cut off the tail.
    sampling = params.sampling
    sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p = 1.0, 0, 1.0, 0.0
    return engine.Server(params)


def _port(server: Any) -> int:
    return int(server.listening_address.rsplit(":", 1)[1].strip("/"))


def _digest(gguf: Path) -> str:
    from baseload.adapters.tiny_gguf import file_digest

    return file_digest(gguf)


if __name__ == "__main__":
    raise SystemExit(main())
