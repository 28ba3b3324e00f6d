"""Which ledger an owner writes, opened; what is wrong with it is told with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from baseload.errors import FleetError, LedgerError, LedgerUnavailable


def open_ledger(state: Path, name: str | None, say: Callable[[str], None]) -> Any:
    """Return the ledger: SQLite in the state folder, or the database whose address the environment variable `name` holds."""
    from baseload.adapters.signing import SigningKey, Witness

    signer = SigningKey.load_or_create(state / "signing.key")
    witness = Witness(state / "witness.log")
    if witness.doubt:
        say(f"warning: {witness.doubt}")
    if name is None:
        from baseload.adapters.ledger_sqlite import SqliteLedger

        return SqliteLedger.open(state / "ledger.db", signer, witness=witness)
    address = os.environ.get(name)
    if address and not address.startswith(("postgresql://", "postgres://")):
        raise FleetError(
            f"serve.ledger_env {name}: is no address of a database; write it as postgresql://user@host:5432/name"
        )
    if not address:
        raise FleetError(f"serve.ledger_env: the environment variable {name} is not set; put the address there")
    try:
        from baseload.adapters.ledger_postgres import PostgresLedger
    except ImportError:
        raise LedgerError("a ledger in PostgreSQL needs asyncpg: pip install 'baseload[postgres]'") from None
    try:
        return PostgresLedger.open(address, signer, witness=witness)
    except LedgerUnavailable as error:
        where = database_at(address)
        raise LedgerUnavailable(
            f"serve.ledger_env {name} ({where}): {error}; start the database, or mend the address in {name}. Nothing is "
            "served without a ledger (docs/serve.md, PostgreSQL)"
        ) from None
    except ValueError as error:  # an address that is none
        raise FleetError(
            f"serve.ledger_env {name}: is no address of a database ({error}); write it as "
            "postgresql://user@host:5432/name"
        ) from None


def database_at(address: str) -> str:
    """Return where a database is, without its password.

    >>> database_at("postgresql://me:secret@db.example:5433/ledger?sslmode=require")
    'db.example:5433/ledger'
    """
    try:
        parts = urlsplit(address)
        return f"{parts.hostname or 'this machine'}:{parts.port or 5432}{parts.path}"
    except ValueError:
        return "its address cannot be read"
