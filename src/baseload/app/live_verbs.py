"""The verbs of the live side: `serve`, `keys`, `usage`, `verify`. Heavy parts are imported inside."""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from baseload.app.verbs import say
from baseload.errors import InputError

if TYPE_CHECKING:
    from baseload.adapters.accounts import AccountsFile
    from baseload.ports import KeyRecord, TokenRecord, Total
    from baseload.serve.keys import Keyring

NS = 1_000_000_000
DAY_S = 86_400.0
NAMES_SHOWN = 10


def serve_verb(options: argparse.Namespace) -> int:
    """Run gateway and control plane until told to stop."""
    from baseload.app import early

    run = (options.state or Path(early.STATE)) / "run"
    owner, warning = early.start_owner(run)  # it imports while this process does
    try:
        from baseload.app import serving
    except BaseException:
        early.call_off(owner)
        raise
    return serving.serve(options, say, owner, warning)


# ---- keys ------------------------------------------------------------------------------------------------


def keys_verb(options: argparse.Namespace) -> int:
    """Make, list or revoke keys; a running gateway takes changes up within a second."""
    ring, accounts = keyring(options.state, make=options.keys_verb == "create")
    try:
        return _KEYS[options.keys_verb](options, ring)
    finally:
        accounts.close()


def keyring(state: Path | None, *, make: bool = True) -> tuple[Keyring, AccountsFile]:
    """Return the keys of a state folder, which is made where it is not there and `make`."""
    from baseload.adapters.accounts import AccountsFile
    from baseload.app import early
    from baseload.app.serving import state_folder
    from baseload.serve.keys import open_ring

    wanted = state or Path(early.STATE)
    if not make and not (wanted / "accounts.db").is_file():
        raise InputError(f"{wanted}: holds no keys; name the state folder of a gateway, or make a key first")
    folder = state_folder(state)
    accounts = AccountsFile(folder / "accounts.db")
    try:
        return open_ring(accounts, folder / "pepper"), accounts
    except BaseException:
        accounts.close()
        raise


def _create(options: argparse.Namespace, ring: Keyring) -> int:
    now_ns = time.time_ns()
    if options.tenant is None and options.role is None:
        raise InputError("keys create: say --tenant for a tenant's key, or --role for a control token")
    if options.role not in (None, "tenant") and options.tenant is not None:
        raise InputError(
            "keys create: say --tenant for a tenant's key, or --role for a control token; both only with --role tenant"
        )
    if options.days is not None and not 0.0 < options.days < 36_500.0:
        raise InputError(f"keys create: --days {options.days:g} is out of range; give days from now")
    expires_ns = None if options.days is None else now_ns + round(options.days * DAY_S * NS)
    if options.role is not None:
        _no_limits(options)
        if options.role == "tenant" and options.tenant is not None:
            _known_tenant(options.tenant, _served_fleet(options.state))
        token = ring.create_token(
            options.role, now_ns=now_ns, name=options.name, expires_ns=expires_ns, tenant=options.tenant or ""
        )
        return _made(options, token.secret, _token_row(token.record))
    _known_tenant(options.tenant, _served_fleet(options.state))
    for name in ("rpm", "tpm", "concurrency"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"keys create: --{name} {getattr(options, name)} lets nothing through; give at least 1")
    budget = None if options.budget is None else _nano(options.budget)
    made = ring.create(
        options.tenant, now_ns=now_ns, name=options.name, budget_nano=budget, rpm=options.rpm, tpm=options.tpm,
        concurrency=options.concurrency, expires_ns=expires_ns,
    )  # fmt: skip
    return _made(options, made.secret, _key_row(made.record))


def _no_limits(options: argparse.Namespace) -> None:
    given = [f"--{name}" for name in ("budget", "rpm", "tpm", "concurrency") if getattr(options, name) is not None]
    if given:
        raise InputError(
            f"keys create: {', '.join(given)} limits what a tenant's key may ask of models, which a control token cannot; "
            "leave it out, or leave out --role"
        )


def _nano(amount: float) -> int:
    if not 0.0 < amount < 1e9:
        raise InputError(f"keys create: --budget {amount:g} is out of range; give an amount in the fleet's currency")
    return round(amount * NS)


def _served_fleet(state: Path | None) -> list[str] | None:
    """Return the tenants of the fleet that this state folder last served; None where none was."""
    from baseload.app.serving import state_folder
    from baseload.serve.succession import GONE
    from baseload.serve.tables import decode

    try:
        tables = decode((state_folder(state) / "run" / "tables.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return [row.name for row in tables.tenants if not row.name.startswith(GONE)]


def _known_tenant(name: str, known: list[str] | None) -> None:
    if known is not None and name not in known:
        shown = ", ".join(known[:NAMES_SHOWN])
        raise InputError(f"keys create: the fleet that is served has no tenant `{name}`; it has {shown}")


def _ever_heard_of(verb: str, options: argparse.Namespace, known: set[str]) -> None:
    """Raise where a tenant asked about is none of those `known` (empty: forgotten ones), nor of the fleet that is served."""
    every = sorted(known.union(_served_fleet(options.state) or ()) - {""})
    if options.tenant not in every:
        has = f"known are {', '.join(every[:NAMES_SHOWN])}" if every else "none is known here; see --state"
        raise InputError(f"{verb}: nothing is known of a tenant `{_calm(options.tenant)}`; {has}")


def _made(options: argparse.Namespace, secret: str, row: dict[str, Any]) -> int:
    if options.json:
        print(json.dumps({"secret": secret, **row}))
    else:
        print(secret)
        say("Shown this once and stored nowhere: keep it now.")
    return 0


def _list(options: argparse.Namespace, ring: Keyring) -> int:
    rows = [_key_row(record) for record in ring.list(options.tenant)]
    if options.tenant is None:
        rows += [_token_row(record) for record in ring.accounts.tokens()]
    else:
        rows += [_token_row(record) for record in ring.accounts.tokens() if record.tenant == options.tenant]
    if not rows and options.tenant is not None:
        _ever_heard_of("keys list", options, {record.tenant for record in ring.list()})
    if options.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print(f"no keys yet; make one with `baseload keys create --tenant {options.tenant or 'NAME'}`")
        return 0
    head = ("id", "for", "name", "begins", "budget", "a minute", "at once", "created", "state")
    _print_table(head, [_shown(row) for row in rows])
    return 0


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    limits = [
        f"{row[key]:,} {word}" for key, word in (("rpm", "requests"), ("tpm", "tokens")) if row.get(key) is not None
    ]
    budget = row.get("budget")
    return (
        str(row["id"]), _calm(row.get("tenant") or _of_role(row) or "(forgotten)"), _calm(row["name"]), row["begins"],
        "-" if budget is None else f"{budget:,.2f}" if budget >= 1.0 else f"{budget:.4g}", ", ".join(limits) or "-",
        "-" if row.get("concurrency") is None else str(row["concurrency"]),
        row["created"], row["state"],
    )  # fmt: skip


def _of_role(row: dict[str, Any]) -> str:
    return f"{row['role']} {row['of']}".strip() if "role" in row else ""


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _calm(text: str) -> str:
    """Return text that cannot steer a terminal, cut to a line's length."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:60])


def _key_row(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.key_i, "tenant": record.tenant, "name": record.name, "begins": record.prefix,
        "budget": None if record.budget_nano is None else record.budget_nano / NS, "rpm": record.rpm,
        "tpm": record.tpm, "concurrency": record.concurrency, "created": _day_of(record.created_ns),
        "state": _state(record), "pseudonym": record.pseudonym,
    }  # fmt: skip


def _token_row(record: TokenRecord) -> dict[str, Any]:
    return {
        "id": f"token-{record.token_i}", "role": record.role, "of": record.tenant, "name": record.name, "begins": record.prefix,
        "created": _day_of(record.created_ns), "state": _state(record),
    }  # fmt: skip


def _state(record: KeyRecord | TokenRecord) -> str:
    if record.revoked_ns is not None:
        return f"revoked {_day_of(record.revoked_ns)}"
    if record.expires_ns is not None:
        over = record.expires_ns <= time.time_ns()
        return f"{'expired' if over else 'until'} {_day_of(record.expires_ns)}"
    return "valid"


def _day_of(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / NS, UTC).strftime("%Y-%m-%d")


def _revoke(options: argparse.Namespace, ring: Keyring) -> int:
    now_ns = time.time_ns()
    if options.key.startswith("token-") and options.key[6:].isdigit():
        done = ring.accounts.revoke_token(int(options.key[6:]), now_ns)
        said = options.key
    else:
        whole = ring.look_up(options.key.encode(), now_ns)
        record = whole if whole is not None else ring.find(options.key)
        done, said = ring.revoke(record.key_i, now_ns), f"key {record.key_i} of {record.tenant}"
    print(json.dumps({"revoked": done}) if options.json else f"{said} {'revoked' if done else 'was revoked before'}")
    return 0


def _rotate_pepper(options: argparse.Namespace, ring: Keyring) -> int:
    number = ring.peppers.rotate()
    retired = ring.peppers.retire(ring.accounts.peppers_in_use())
    said = f"pepper {number} is in use from now on; keys move to it when they are next used"
    print(json.dumps({"pepper": number, "retired": retired}) if options.json else said)
    return 0


def _forget(options: argparse.Namespace, ring: Keyring) -> int:
    n = ring.forget(options.tenant, time.time_ns())
    if n == 0:
        said = _calm(options.tenant)
        raise InputError(f"keys forget: `{said}` has no keys, and its name stands nowhere; see `baseload keys list`")
    said = f"{options.tenant}: {n} keys revoked, the name removed; the ledger keeps a pseudonym that leads nowhere"
    print(json.dumps({"keys": n}) if options.json else said)
    return 0


_KEYS = {"create": _create, "list": _list, "revoke": _revoke, "rotate-pepper": _rotate_pepper, "forget": _forget}


# ---- usage and verify ------------------------------------------------------------------------------------


def usage_verb(options: argparse.Namespace) -> int:
    """Print what was used, by tenant and month, from the ledger's own sums."""
    from baseload.adapters.ledger_sqlite import SqliteLedger

    path = _ledger_of(options.state)
    _, accounts = keyring(options.state)
    names = accounts.tenants()
    accounts.close()
    with SqliteLedger.read(path) as ledger:
        if options.since is not None:
            totals = _since(ledger, _instant(options.since))
        else:
            totals = ledger.totals(datetime.now(UTC).strftime("%Y-%m"))
    rows = _usage_rows(totals, names, options.tenant)
    if not rows and options.tenant is not None:
        _ever_heard_of("usage", options, set(names.values()))
    if options.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print("nothing was used in this time")
        return 0
    head = ("month", "tenant", "requests", "input", "of it cached", "output", "price", "cost", "Wh", "g CO2e")
    _print_table(
        head,
        [
            (
                row["month"], row["tenant"], f"{row['requests']:,}", f"{row['input_tokens']:,}",
                f"{row['cached_tokens']:,}", f"{row['output_tokens']:,}", f"{row['price']:,.6f}", f"{row['cost']:,.6f}",
                f"{row['energy_wh']:,.3f}", f"{row['carbon_g']:,.3f}",
            )
            for row in rows
        ],
    )  # fmt: skip
    return 0


def _ledger_of(state: Path | None) -> Path:
    """Return the ledger of a state folder; raises InputError, and makes nothing, where there is none."""
    from baseload.app import early
    from baseload.app.serving import state_folder

    path = (state or Path(early.STATE)) / "ledger.db"
    if not path.is_file():
        raise InputError(f"{path}: there is no ledger yet; run `baseload serve`, or name its folder with --state")
    return state_folder(state) / "ledger.db"


def _instant(day: str) -> int:
    try:
        return round(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * NS
    except ValueError:
        raise InputError(f"--since {day}: is no day; write YYYY-MM-DD") from None


def _since(ledger: Any, since_ns: int) -> list[Total]:
    """Return sums over the rows settled from an instant on."""
    from baseload.ports import Total
    from baseload.serve.rows import settled

    found: dict[tuple[str, str, str], Total] = {}
    for row in settled(kept.body for kept in ledger.rows()):
        if row.at_ns < since_ns:
            continue
        month = datetime.fromtimestamp(row.at_ns / NS, UTC).strftime("%Y-%m")
        total = found.setdefault((month, row.tenant, row.key), Total(month=month, tenant=row.tenant, key=row.key))
        total.requests += 1
        for name in (
            "input_tokens",
            "cached_tokens",
            "output_tokens",
            "price_nano",
            "cost_nano",
            "energy_mj",
            "carbon_ug",
        ):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    return list(found.values())


def _usage_rows(totals: list[Total], names: dict[str, str], only: str | None) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for total in totals:
        tenant = names.get(total.tenant, total.tenant)
        if only is not None and only != tenant:
            continue
        row = rows.setdefault(
            (total.month, tenant),
            {"month": total.month, "tenant": tenant, "requests": 0, "input_tokens": 0, "cached_tokens": 0,
             "output_tokens": 0, "price": 0.0, "cost": 0.0, "energy_wh": 0.0, "carbon_g": 0.0},
        )  # fmt: skip
        for name in ("requests", "input_tokens", "cached_tokens", "output_tokens"):
            row[name] += getattr(total, name)
        row["price"] += total.price_nano / NS
        row["cost"] += total.cost_nano / NS
        row["energy_wh"] += total.energy_mj / 3.6e6
        row["carbon_g"] += total.carbon_ug / 1e6
    return [rows[key] for key in sorted(rows)]


def verify_verb(options: argparse.Namespace) -> int:
    """Check a ledger or a receipt offline; exit code 1 where something does not hold."""
    from baseload.report.verify import verify

    if options.ledger is None and options.receipt is None:
        raise InputError("verify: name a ledger file, or a receipt with --receipt")
    verdicts = verify(
        options.ledger, receipt=options.receipt, witness=options.witness, public_key=options.public_key,
        previous=options.previous,
    )  # fmt: skip
    if options.json:
        print(msgspec.json.encode([{"whole": one.whole, "lines": one.lines()} for one in verdicts]).decode())
    else:
        for verdict in verdicts:
            print("\n".join(verdict.lines()))
    return 0 if all(verdict.whole for verdict in verdicts) else 1


# ---- the ledger's own affairs ----------------------------------------------------------------------------


def ledger_verb(options: argparse.Namespace) -> int:
    """Back up, restore, rotate, or change the signing key of a SQLite ledger."""
    import os

    from baseload.adapters.ledger_core import rotate_signing_key
    from baseload.adapters.ledger_sqlite import SqliteLedger, restore
    from baseload.adapters.signing import SigningKey, Witness
    from baseload.app import serving

    if options.ledger_verb == "restore":
        path = serving.state_folder(options.state) / "ledger.db"
    else:
        path = _ledger_of(options.state)
    folder, key = path.parent, path.parent / "signing.key"
    if options.ledger_verb == "backup":
        with SqliteLedger.read(path) as ledger:
            ledger.backup(options.file)
            size = ledger.size()
        print(f"{options.file}: {size:,} rows; check it with `baseload verify {options.file}`")
        return 0
    held = serving.lock(folder)  # the rest wants the only writer
    try:
        signer, witness = SigningKey.load_or_create(key), Witness(folder / "witness.log")
        if options.ledger_verb == "restore":
            restore(options.file, path, signer, witness=witness)
            print(f"{path}: goes on from {options.file}; what came after that backup is only in the witness file")
            return 0
        with SqliteLedger.open(path, signer, witness=witness) as ledger:
            if options.ledger_verb == "rotate":
                ledger.rotate(options.file)
                print(f"{options.file}: the rows so far; {path} goes on, linked to it")
            else:
                new = rotate_signing_key(ledger, key, "command line")
                print(f"{key}: new; its public half is {new.public_line} and stands in {folder / 'signing.pub'}")
    finally:
        os.close(held)
    return 0
