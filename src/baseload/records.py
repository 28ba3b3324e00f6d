"""The tables of Records: what both verbs write and the report reads. One list; dtypes, file schema and docs come from it.

Times are int64 nanoseconds after the run's start, -1 where it never happened. Names become indices once, when the fleet
becomes tables, and names again once, in the report; `meta.json` beside the tables holds the lists of names.
A run folder holds `fleet.yaml`, `meta.json`, `requests.parquet` (or `requests-NNN.parquet` parts), `replicas.parquet`,
`sites.parquet`, and once reported `report.html`. While it is being written its name ends in `.partial`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

RECORDS_VERSION = 1

# Status of a request.
SERVED: Final = 0
REFUSED: Final = 1
FAILED: Final = 2
UNFINISHED: Final = 3
STATUS_NAMES = ("served", "refused", "failed", "unfinished")

# Why a request was refused or failed; 0 when served.
REASON_NONE: Final = 0
REASON_NO_REPLICA: Final = 1
REASON_SLO: Final = 2
REASON_BUDGET: Final = 3
REASON_POWER: Final = 4
REASON_TOO_LONG: Final = 5
REASON_WAITED: Final = 6
REASON_LOST: Final = 7
REASON_RETRIES: Final = 8
REASON_END: Final = 9
REASON_NAMES = (
    "",
    "no replica may serve it",
    "expected wait beyond the SLO",
    "tenant's budget is spent",
    "shed at the site's power limit",
    "longer than the model's context or the replica's KV cache",
    "given up after max_wait_s",
    "replica failed after the first token",
    "retries used up",
    "still running when the run ended",
)


class Column(NamedTuple):
    """One column: its name, NumPy dtype, unit ('' for a count or an index), meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


REQUESTS = (
    Column("request_id", "int64", "", "row of the trace, from 0"),
    Column("arrival_ns", "int64", "ns", "at the gateway"),
    Column("tenant_i", "int16", "", "index into meta.tenants"),
    Column("region_i", "int16", "", "index into meta.regions"),
    Column("model_i", "int16", "", "index into meta.models"),
    Column("deployment_i", "int16", "", "index into meta.deployments; -1: never routed"),
    Column("site_i", "int16", "", "index into meta.sites; -1: never routed"),
    Column("replica_i", "int32", "", "row of the replicas table; -1: never routed"),
    Column("input_tokens", "int32", "tokens", "prompt"),
    Column("output_tokens", "int32", "tokens", "delivered; fewer than asked when it failed"),
    Column("cached_tokens", "int32", "tokens", "prompt tokens found in the prefix cache at the last admission"),
    Column("n_preempted", "int16", "", "times it was preempted and recomputed"),
    Column("n_tries", "int16", "", "times it was routed"),
    Column("status", "int8", "", "0 served, 1 refused, 2 failed, 3 unfinished"),
    Column("reason", "int8", "", "why not served: index into records.REASON_NAMES"),
    Column("scheduled_ns", "int64", "ns", "first prefill began at the replica"),
    Column("first_token_ns", "int64", "ns", "first token left the replica"),
    Column("finish_ns", "int64", "ns", "last token left the replica, or it was given up"),
    Column(
        "rtt_ns",
        "int64",
        "ns",
        "network that the times here do not hold: client to gateway and back, site back to gateway; add to TTFT and E2E",
    ),
    Column("energy_j", "float64", "J", "accelerators' and host's energy while they worked on it, idle not included"),
)

REPLICAS = (
    Column("replica_i", "int32", "", "row"),
    Column("deployment_i", "int16", "", "index into meta.deployments"),
    Column("site_i", "int16", "", "index into meta.sites"),
    Column("accelerators", "int32", "", "accelerators it holds"),
    Column("n_steps", "int64", "", "engine steps"),
    Column("busy_ns", "int64", "ns", "time in steps"),
    Column("prefill_ns", "int64", "ns", "the part of busy_ns that prompts added"),
    Column("powered_ns", "int64", "ns", "time powered on: starting, up or draining"),
    Column("down_ns", "int64", "ns", "time failed"),
    Column("energy_j", "float64", "J", "busy and idle"),
    Column("idle_j", "float64", "J", "the part drawn while no step ran"),
    Column("prefill_tokens", "int64", "tokens", "computed, recomputation included"),
    Column("decode_tokens", "int64", "tokens", "computed"),
    Column("cached_tokens", "int64", "tokens", "found in the prefix cache"),
    Column("served", "int64", "", "requests finished here"),
    Column("n_preempted", "int64", "", "preemptions"),
    Column("kv_blocks", "int64", "", "KV blocks it has"),
    Column("kv_blocks_peak", "int64", "", "most KV blocks in use"),
)

SITES = (
    Column("site_i", "int16", "", "index into meta.sites"),
    Column("start_ns", "int64", "ns", "start of the bin"),
    Column("length_ns", "int64", "ns", "length of the bin"),
    Column("inference_j", "float64", "J", "IT energy of replicas, busy and idle, and of parked accelerators"),
    Column("idle_j", "float64", "J", "the part of inference_j drawn while no step ran, parked accelerators included"),
    Column("training_j", "float64", "J", "IT energy of training jobs"),
    Column("limit_kw", "float64", "kW", "IT power that may be drawn"),
    Column("powered_replicas", "float64", "", "mean number powered on"),
    Column("healthy_replicas", "float64", "", "mean number up"),
    Column("prefill_tokens", "int64", "tokens", "prompt tokens computed"),
    Column("decode_tokens", "int64", "tokens", "answer tokens computed"),
    Column("served", "int64", "", "requests finished"),
    Column("capped_ratio", "float64", "", "share of the bin under a power cap"),
)

TABLES = {"requests": REQUESTS, "replicas": REPLICAS, "sites": SITES}


def dtypes(table: str) -> list[tuple[str, str]]:
    """Return the NumPy structured dtype of a table: (name, dtype) in file order.

    >>> dtypes("sites")[0]
    ('site_i', 'int16')
    """
    return [(column.name, column.dtype) for column in TABLES[table]]
