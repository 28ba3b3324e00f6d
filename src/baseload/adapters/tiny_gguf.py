"""A language model that Baseload makes itself: small, random weights, real file; so a real engine needs no download.

Llama architecture in a GGUF file. Two things make it a good double of a real model: one channel of the residual stream
is constant, which gives whole words a bias, so that answers read as words; and the logit of the end token is set so that
answers have a chosen mean length, spread geometrically. Every byte is a token, so any UTF-8 text is a prompt, one token a
character or less than one a byte. What it says means nothing. Serving it is `engines/embedded_main.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baseload.errors import InputError

VERSION = 1  # of the recipe: counts up when equal numbers would give other bytes
WORDS = """a about account all and answer any at back balance be before block build by cable can carry cell chain change
clear clock cold cool core count cycle day door draw each energy even every fan far fast feed few field find first fleet
flow for found from full give good grid ground hall heat here hold hour idle in is join keep kind last ledger less light
line link load long low make many meter mind mix more move near new next night no note now of on one open out over page
pair part peak place plan plant plug power price pull queue quick rack rate read region reply rest ring river room route
run safe same scale seat send serve share ship side site slow small some south space speed spread stand start steady step
still store stream such sum table take tell ten than that the then they this tide time to token trace tree turn two unit
until up usage use valley value volt wait walk warm water watt way week well west while wide wind with word work year""".split()
ASCII = [chr(code) for code in range(0x20, 0x7F)]
UNKNOWN, BEGIN, END = 0, 1, 2
NORMAL, UNKNOWN_TYPE, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6  # token types of the file format
SPACE = "\u2581"  # how the tokeniser spells a blank
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] + ':' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% elif message['content'] %}{% for part in message['content'] %}{{ part['text'] }}"
    "{% endfor %}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
NOISE_SD = 0.6  # spread of the words' logits: answers differ, none is certain
WORD_LOGIT = 12.0  # of the constant channel: what is no word is e^24 times rarer
CONSTANT = 1.0  # the channel that no block writes to


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """What the model is made from; equal numbers give equal bytes."""

    seed: int = 7
    n_layers: int = 4
    hidden: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    ffn: int = 352
    vocab: int = 640
    max_context_tokens: int = 131_072
    mean_answer_tokens: float = 96.0

    def __post_init__(self) -> None:
        assert self.hidden % self.n_heads == 0 and self.n_heads % self.n_kv_heads == 0, self
        assert self.vocab >= 3 + 256 + len(ASCII) + len(WORDS), self
        assert self.mean_answer_tokens > 1.0, self


def cached(spec: TinySpec | None = None, folder: Path | None = None) -> Path:
    """Return the path of the model's file, made once and kept in the cache folder; it may be deleted at any time."""
    spec = spec or TinySpec()
    folder = folder or cache_folder()
    path = folder / f"tiny-{recipe_digest(spec)[:16]}.gguf"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=path.stem, suffix=".partial")
        os.close(handle)
        try:
            write(Path(name), spec)
            os.replace(name, path)  # another process may have made the same bytes meanwhile
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as problem:
        raise InputError(
            f"{folder}: the tiny model cannot be written ({problem.strerror}); set BASELOAD_CACHE to a writable folder"
        ) from problem
    return path


def cache_folder() -> Path:
    """Return where made models are kept."""
    base = os.environ.get("BASELOAD_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "baseload" / "models"


def recipe_digest(spec: TinySpec) -> str:
    """Return a digest of the numbers and the recipe, not of the bytes."""
    text = json.dumps({"version": VERSION, "words": WORDS, "template": CHAT_TEMPLATE} | asdict(spec), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as `sha256:<hex>`: the model digest told in every answer."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, spec: TinySpec) -> None:
    """Write the model to `path`; wants the package `gguf` (extra `engine`)."""
    gguf = _gguf()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("baseload-tiny")
    writer.add_description("random weights; made by Baseload for rehearsals and tests; its words mean nothing")
    writer.add_context_length(spec.max_context_tokens)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_rope_dimension_count(spec.hidden // spec.n_heads)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(spec.vocab)
    texts, scores, types = _tokens(spec)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in _tensors(spec):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as problem:
        raise InputError(
            "the embedded engine makes its model with `gguf`, which is not installed; pip install 'baseload[engine]', "
            "or name a model file with `gguf:`"
        ) from problem


def _tokens(spec: TinySpec) -> tuple[list[bytes], list[float], list[int]]:
    """Return text, score and type of each token: three marks, 256 bytes, ASCII, words, and unused ones to fill."""
    texts = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [UNKNOWN_TYPE, CONTROL, CONTROL] + [BYTE] * 256
    plain = [SPACE if char == " " else char for char in ASCII] + [SPACE + word for word in WORDS]
    texts += plain
    types += [NORMAL] * len(plain)
    n_unused = spec.vocab - len(texts)
    texts += [f"<unused{i}>" for i in range(n_unused)]
    types += [UNUSED] * n_unused
    return [text.encode() for text in texts], [-float(i) for i in range(len(texts))], types


def _first_word() -> int:
    return 3 + 256 + len(ASCII)


def _tensors(spec: TinySpec) -> list[tuple[str, NDArray[np.float32]]]:
    """Return the weights; channel 0 of the residual stream is the same in each token and no block writes to it."""
    dice = np.random.default_rng(spec.seed)
    head_dim = spec.hidden // spec.n_heads
    kv = spec.n_kv_heads * head_dim

    def matrix(rows: int, columns: int, sd: float) -> NDArray[np.float32]:
        return (dice.standard_normal((rows, columns), dtype=np.float32) * np.float32(sd)).astype(np.float32)

    def onto_stream(columns: int) -> NDArray[np.float32]:
        weights = matrix(spec.hidden, columns, 0.5 / math.sqrt(columns))
        weights[0] = 0.0
        return weights

    embedding = matrix(spec.vocab, spec.hidden, 1.0)
    embedding[:, 0] = CONSTANT * math.sqrt(spec.hidden)
    tensors = [("token_embd.weight", embedding)]
    ones = np.ones(spec.hidden, np.float32)
    scale = 1.0 / math.sqrt(spec.hidden)
    for i in range(spec.n_layers):
        tensors += [
            (f"blk.{i}.attn_norm.weight", ones),
            (f"blk.{i}.attn_q.weight", matrix(spec.hidden, spec.hidden, scale)),
            (f"blk.{i}.attn_k.weight", matrix(kv, spec.hidden, scale)),
            (f"blk.{i}.attn_v.weight", matrix(kv, spec.hidden, scale)),
            (f"blk.{i}.attn_output.weight", onto_stream(spec.hidden)),
            (f"blk.{i}.ffn_norm.weight", ones),
            (f"blk.{i}.ffn_gate.weight", matrix(spec.ffn, spec.hidden, scale)),
            (f"blk.{i}.ffn_up.weight", matrix(spec.ffn, spec.hidden, scale)),
            (f"blk.{i}.ffn_down.weight", onto_stream(spec.ffn)),
        ]
    return [*tensors, ("output_norm.weight", ones), ("output.weight", _head(spec, matrix))]


def _head(spec: TinySpec, matrix: Any) -> NDArray[np.float32]:
    """Return the output head: words all about as likely, the end once in a mean answer, all else never."""
    # Channel 0 leaves the last norm at about sqrt(hidden) x constant / sqrt(constant^2 + 1), as others have variance 1.
    lift = math.sqrt(spec.hidden) / math.sqrt(1.0 + CONSTANT**-2)
    head: NDArray[np.float32] = matrix(spec.vocab, spec.hidden, NOISE_SD / math.sqrt(spec.hidden) * math.sqrt(2.0))
    head[:, 0] = -WORD_LOGIT / lift
    words = slice(_first_word(), _first_word() + len(WORDS))
    head[words, 0] = WORD_LOGIT / lift
    head[END] = 0.0
    end_logit = WORD_LOGIT + math.log(len(WORDS)) + NOISE_SD**2 / 2.0 - math.log(spec.mean_answer_tokens - 1.0)
    head[END, 0] = end_logit / lift
    return head
