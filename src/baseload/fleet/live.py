"""The live side of the fleet file: where `baseload serve` listens, how engines come to be, limits of time and size."""

from __future__ import annotations

from typing import Annotated, Literal

from baseload.fleet.kinds import (
    D,
    OneUp,
    PositiveSeconds,
    Ratio,
    Record,
    ZeroUpInt,
)

MOST_PORT = 65_535


class LiveEngine(Record, frozen=True):
    """How the replicas of a deployment come to be under `baseload serve`."""

    kind: Annotated[
        Literal["external", "embedded", "emulated"],
        D(
            "external: servers that run already; embedded: a small real engine that Baseload starts; "
            "emulated: answers paced by the speed model, for rehearsals"
        ),
    ] = "emulated"
    urls: Annotated[
        dict[str, list[str]], D("external: base URLs by site, one a replica, e.g. http://10.0.0.5:8000")
    ] = {}
    served_model: Annotated[
        str | None, D("the model's name at the engine; the name that tenants call where absent")
    ] = None
    key_env: Annotated[str | None, D("environment variable that holds the engine's own API key")] = None
    metrics: Annotated[
        Literal["auto", "vllm", "sglang", "llamacpp", "tgi", "none"], D("whose counters are scraped for queue depth")
    ] = "auto"
    gguf: Annotated[str | None, D("embedded: a model file, relative to the fleet file; a tiny one where absent")] = None
    slots: Annotated[OneUp, D("embedded: sequences at once in each engine", le=256)] = 4
    model_digest: Annotated[
        str | None, D("SHA-256 of the weights, told in every answer; computed for embedded engines where absent")
    ] = None


class Limits(Record, frozen=True):
    """Time and size limits of the gateway."""

    header_s: Annotated[PositiveSeconds, D("to send the request's headers")] = 10.0
    body_s: Annotated[PositiveSeconds, D("to send the request's body")] = 60.0
    idle_s: Annotated[PositiveSeconds, D("a kept-alive connection without a request is closed after this")] = 75.0
    first_byte_s: Annotated[PositiveSeconds, D("for an engine's first byte; then it is tried elsewhere")] = 60.0
    token_s: Annotated[PositiveSeconds, D("between two pieces of an answer; then the stream ends with an error")] = 30.0
    request_s: Annotated[PositiveSeconds, D("for a whole request: its deadline")] = 600.0
    drain_s: Annotated[PositiveSeconds, D("that running streams get to end at a stop or an upgrade")] = 30.0
    header_bytes: Annotated[OneUp, D("all headers of a request", le=1_048_576)] = 32_768
    body_bytes: Annotated[OneUp, D("a request's body", le=1_073_741_824)] = 16_777_216
    connections: Annotated[OneUp, D("of clients, for each worker", le=1_000_000)] = 16_384
    queue: Annotated[ZeroUpInt, D("requests that may wait at the gateway for a free replica", le=1_000_000)] = 1024


class Serve(Record, frozen=True):
    """The live side: where it listens, its engines, its limits."""

    listen: Annotated[str, D("address and port of the gateway")] = "127.0.0.1:8080"
    control: Annotated[str, D("address and port of the control listener")] = "127.0.0.1:8081"
    workers: Annotated[OneUp, D("gateway processes", le=256)] = 1
    tls_cert: Annotated[str | None, D("PEM file; TLS on the gateway where given")] = None
    tls_key: Annotated[str | None, D("PEM file of its private key")] = None
    control_cert: Annotated[
        str | None,
        D("PEM file; TLS on the control listener (off loopback, absent: the gateway's pair, where it has one)"),
    ] = None
    control_key: Annotated[str | None, D("PEM file of its private key")] = None
    control_hosts: Annotated[
        list[str],
        D(
            "names, with their ports, under which browsers may ask the control listener, beside its address; has to name some "
            "where it listens on every address of the machine"
        ),
    ] = []
    ledger_env: Annotated[
        str | None,
        D("environment variable with a PostgreSQL address for the ledger; SQLite in the state folder where absent"),
    ] = None
    engines: Annotated[dict[str, LiveEngine], D("by deployment; emulated where absent")] = {}
    limits: Annotated[Limits, D("time and size limits")] = Limits()
    retry_ratio: Annotated[Ratio, D("retries may add this share to the load on engines")] = 0.1
    eject_after: Annotated[OneUp, D("failures in a row after which a replica is left alone for a while", le=1000)] = 5
    eject_s: Annotated[PositiveSeconds, D("for how long; doubles each time, up to ten times")] = 10.0
    eject_most_ratio: Annotated[
        Ratio, D("most of a model's replicas that may be left alone at once; beyond, it is we who are cut off")
    ] = 0.5
    meter: Annotated[Literal["modelled", "nvml", "rapl"], D("where a site's measured energy comes from")] = "modelled"
    power_limit: Annotated[
        Literal["none", "nvml"],
        D(
            "what holds the accelerators of this host (in the first site) to the site's cap (`policy.cap`): nvml sets their "
            "power limits and wants root; emulated engines obey by themselves"
        ),
    ] = "none"


def host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of `127.0.0.1:8080`, `[::1]:8080` or `:8080` (loopback); raises ValueError with the reason.

    >>> host_and_port("[::1]:0"), host_and_port(":8080")
    (('::1', 0), ('127.0.0.1', 8080))
    """
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ValueError("has no port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets")
    if not port.isascii() or not port.isdigit() or int(port) > MOST_PORT:
        raise ValueError(f"the port is no number from 0 to {MOST_PORT}")
    if any(letter.isspace() or letter in "/@#?*" for letter in host):
        raise ValueError("the host is none")
    return host or "127.0.0.1", int(port)
