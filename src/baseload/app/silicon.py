"""Measured rows: 1,734 closed-loop TTFT and TPOT measurements of LLM serving, cleaned and judged one by one.

Source: `silicon_sample.csv` of ai-dynamo/aiconfigurator (Apache-2.0; part of it seems to come from InferenceX).
What ships (`measured/silicon.csv.gz`) is what `clean` makes of it: aggregated rows, copies counted once, columns
mended. `unfit_reasons` says which of them do not measure what they claim; `accuracy.py` reports with and without.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path

from baseload.errors import TraceError
from baseload.fleet import catalog
from baseload.formulas.shape import ModelShape
from baseload.formulas.speed import AcceleratorSpec, Parallelism, kv_capacity_tokens

SHIPPED = "measured/silicon.csv.gz"
SPECULATIVE = "DeepSeek-R1 row without a twin labelled V3: some of them run speculative decoding, unlabelled"
DISAGGREGATED = "GB200 row: many are totals of a disaggregated system"
CROWDED = "concurrency above 1,024: beyond one aggregated replica"
OLD_SGLANG = "SGLang before December 2025: TTFT plateaus near 7 s whatever the load"
GAPPED = "vLLM 0.12 with a mixture of experts: a flat gap of 50 ms between tokens"
SEATS = "512 users on vLLM with fewer seats: TTFT of 20 s to 300 s, TPOT as of a small batch"
KNIFE_EDGE = "context demand above 70 % of the KV cache: queueing on a knife's edge"
REASONS = (SPECULATIVE, DISAGGREGATED, CROWDED, OLD_SGLANG, GAPPED, SEATS, KNIFE_EDGE)
KNIFE_EDGE_RATIO = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: `concurrency` users in closed loop on one replica."""

    model: str  # catalogue id
    accelerator: str  # catalogue id
    backend: str
    version: str
    precision: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    tp: int
    dp: int
    ep: int
    measured_on: str  # ISO date, or empty
    family: str  # which of the source's files the row came from
    n_copies: int
    labels: str  # the model names its copies carry, joined by |
    ttft_ms: float
    tpot_ms: float

    @property
    def parallelism(self) -> Parallelism:
        """Return how the row's replica is split over accelerators."""
        return Parallelism(tp=self.tp, dp=self.dp, ep=self.ep)

    @property
    def kv_precision(self) -> str:
        """What the source does not say; quantised deployments almost always cache in fp8."""
        return "bf16" if self.precision == "bf16" else "fp8"

    @property
    def group(self) -> str:
        """Rows of one group never stand on both sides of a fit; R1 and V3 are one architecture."""
        return f"{self.model.replace('deepseek-r1', 'deepseek-v3')} on {self.accelerator}"


@cache
def shape_of(model: str) -> ModelShape:
    """Return the shape the formulas want of a catalogue model."""
    shape = catalog.model(model).shape
    return ModelShape(**{f.name: getattr(shape, f.name) for f in fields(ModelShape)})


@cache
def spec_of(accelerator: str) -> AcceleratorSpec:
    """Return the numbers the formulas want of a catalogue accelerator; what it cannot do is 0."""
    known = catalog.accelerator(accelerator)
    return AcceleratorSpec(**{f.name: getattr(known, f.name) or 0 for f in fields(AcceleratorSpec)})


def shipped_rows() -> list[Row]:
    """Return the rows that ship with the project."""
    with (
        (files("baseload.app") / SHIPPED).open("rb") as packed,
        gzip.open(packed, "rt", encoding="utf-8", newline="") as text,
    ):
        return [_typed(row) for row in csv.DictReader(text)]


def _typed(row: Mapping[str, str]) -> Row:
    convert = {"int": int, "float": float, "str": str}
    return Row(**{f.name: convert[str(f.type)](row[f.name]) for f in fields(Row)})


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write `rows` as the shipped file: gzip without a date, so that the same rows give the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
    ):
        names = [f.name for f in fields(Row)]
        lines = [",".join(names)]
        lines += [",".join(str(asdict(row)[name]) for name in names) for row in rows]
        packed.write(("\n".join(lines) + "\n").encode())


def clean(path: Path) -> list[Row]:
    """Return the aggregated rows of the source file, exact copies merged and parallelism mended."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
            raw = [row for row in csv.DictReader(text) if row["mode"] == "agg"]
    except (OSError, KeyError, UnicodeDecodeError) as problem:
        raise TraceError(f"{path}: not the measured rows of aiconfigurator ({problem})") from problem
    found: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in raw:
        times = [f"{float(row[name]):.6g}" for name in ("silicon_ttft_ms", "silicon_tpot_ms")]
        found.setdefault((row["system"], row["backend"], *times), []).append(row)
    return [_merged(copies) for copies in found.values()]


def _merged(copies: list[Mapping[str, str]]) -> Row:
    row = copies[0]
    source = row["silicon_data_source"]
    concurrency = re.search(r"silicon_concurrency=(\d+)", source)
    measured = re.search(r"measured=(\d{4}-\d\d-\d\d)", source)
    n_accelerators, dp, ep = _parallelism(row)
    labels = sorted({copy["model_path"].split("/")[1] for copy in copies})
    return Row(
        model=catalog.model(row["model_path"]).model_id,
        accelerator=catalog.accelerator(row["system"]).accelerator_id,
        backend=row["backend"],
        version=row["backend_version"],
        precision=_precision(row),
        input_tokens=int(row["isl"]),
        output_tokens=int(row["osl"]),
        concurrency=int(concurrency.group(1) if concurrency else row["batch_size"]),
        tp=n_accelerators // dp,
        dp=dp,
        ep=ep,
        measured_on=measured.group(1) if measured else "",
        family=_family(row),
        n_copies=len(copies),
        labels="|".join(labels),
        ttft_ms=round(float(row["silicon_ttft_ms"]), 4),
        tpot_ms=round(float(row["silicon_tpot_ms"]), 5),
    )


def _family(row: Mapping[str, str]) -> str:
    if "_cfg" in row["id"]:
        return "db-dump"
    if row["id"].startswith("2026"):
        return row["id"][:10].replace("_", "-")
    return "dynamo" if "gtl_task" in row["silicon_data_source"] else "by-model"


def _parallelism(row: Mapping[str, str]) -> tuple[int, int, int]:
    """Return (accelerators, attention data-parallel ranks, expert-parallel size).

    The columns multiply what should not be multiplied (`tp 64, moe 8 x 8` is 8 accelerators); the id is right
    where it holds tp and ep, else the mixture's tensor-parallel column is.
    """
    tp, dp, moe_tp, moe_ep = (
        int(float(row[name] or 0)) for name in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    named = re.search(r"_tp(\d+)(?:_0)?_ep(\d+|none)(?:_0)?_\d+$", row["id"])
    if named and named.group(2) != "none":
        n = int(named.group(1))
        return n, n if dp > 1 else 1, int(named.group(2))
    if named:
        n = int(named.group(1))
        total = max(n, moe_tp * moe_ep) if catalog.model(row["model_path"]).shape.n_experts else n
        return total, total // n, max(moe_ep, 1)
    if moe_ep > 1:
        n = moe_tp if moe_tp > 1 else tp
        return n, n if dp > 1 else 1, n
    return moe_tp, moe_tp if dp > 1 else 1, 1


def _precision(row: Mapping[str, str]) -> str:
    if row["precision"]:
        return row["precision"]
    quant = row["gemm_quant_mode"] or row["moe_quant_mode"]
    if "NVFP4" in row["model_path"] or quant == "nvfp4":
        return "fp4"
    return "fp8" if "FP8" in row["model_path"] or quant.startswith("fp8") else "bf16"


def kv_demand_ratio(row: Row) -> float:
    """Return the context all users hold at once over what fits in the KV cache; infinite if nothing fits."""
    capacity = kv_capacity_tokens(
        shape_of(row.model), spec_of(row.accelerator), row.parallelism,
        precision=row.precision, kv_precision=row.kv_precision,
    )  # fmt: skip
    demand = row.concurrency * (row.input_tokens + row.output_tokens)
    return demand / capacity if capacity else float("inf")


def unfit_reasons(row: Row) -> tuple[str, ...]:
    """Return why a row does not measure an aggregated replica of known settings; empty if nothing is known."""
    labels = row.labels.split("|")
    unlabelled_r1 = row.model == "deepseek-r1" and not any("-V3" in label for label in labels)
    checks = (
        (SPECULATIVE, unlabelled_r1),
        (DISAGGREGATED, row.accelerator == "gb200"),
        (CROWDED, row.concurrency > 1024),
        (OLD_SGLANG, row.backend == "sglang" and "" < row.measured_on < "2025-12"),
        (GAPPED, row.backend == "vllm" and row.version == "0.12.0" and row.model == "qwen3-235b-a22b"),
        (SEATS, row.backend == "vllm" and row.model == "gpt-oss-120b" and row.concurrency == 512),
        (KNIFE_EDGE, kv_demand_ratio(row) > KNIFE_EDGE_RATIO),
    )
    return tuple(reason for reason, holds in checks if holds)
