"""The tables of a ledger in PostgreSQL, and its longer statements: the same columns as in `ledger_schema.py`."""

from __future__ import annotations

from baseload.adapters.ledger_schema import TABLES

PG_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE rows (
    seq BIGINT PRIMARY KEY, kind SMALLINT NOT NULL, request_id BIGINT NOT NULL, leaf BYTEA NOT NULL, body BYTEA NOT NULL
);
CREATE UNIQUE INDEX once ON rows (request_id, kind) WHERE request_id > 0;
CREATE TABLE nodes (level INTEGER NOT NULL, i BIGINT NOT NULL, hash BYTEA NOT NULL, PRIMARY KEY (level, i));
CREATE TABLE checkpoints (size BIGINT PRIMARY KEY, note TEXT NOT NULL);
CREATE TABLE keys (i BIGSERIAL PRIMARY KEY, key_id TEXT NOT NULL UNIQUE, public_line TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE leases (
    lease_id BIGINT PRIMARY KEY, n_ids BIGINT NOT NULL, closed BYTEA NOT NULL, worker BIGINT NOT NULL,
    tenant TEXT NOT NULL, key TEXT NOT NULL, money_nano BIGINT NOT NULL, at_ns BIGINT NOT NULL
);
CREATE TABLE totals (
    month TEXT NOT NULL, tenant TEXT NOT NULL, key TEXT NOT NULL, requests BIGINT NOT NULL, input_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, price_nano BIGINT NOT NULL, cost_nano BIGINT NOT NULL,
    energy_mj BIGINT NOT NULL, carbon_ug BIGINT NOT NULL, PRIMARY KEY (month, tenant, key)
);
CREATE OR REPLACE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$;
CREATE TRIGGER rows_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON rows FOR EACH STATEMENT EXECUTE FUNCTION append_only();
CREATE TRIGGER nodes_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON nodes FOR EACH STATEMENT EXECUTE FUNCTION append_only();
CREATE TRIGGER checkpoints_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION append_only();
"""
PG_DROP = "".join(f"DROP TABLE {table};" for table in TABLES)
PG_TOTAL = """INSERT INTO totals VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (month, tenant, key) DO UPDATE SET requests = totals.requests + excluded.requests,
    input_tokens = totals.input_tokens + excluded.input_tokens,
    cached_tokens = totals.cached_tokens + excluded.cached_tokens,
    output_tokens = totals.output_tokens + excluded.output_tokens,
    price_nano = totals.price_nano + excluded.price_nano, cost_nano = totals.cost_nano + excluded.cost_nano,
    energy_mj = totals.energy_mj + excluded.energy_mj, carbon_ug = totals.carbon_ug + excluded.carbon_ug"""
PG_LEASE = """INSERT INTO leases VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (lease_id) DO UPDATE SET closed = excluded.closed"""
PG_META = "INSERT INTO meta VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
PG_KEY = "INSERT INTO keys (key_id, public_line, note) VALUES ($1, $2, $3) ON CONFLICT (key_id) DO NOTHING"
# How a table is copied to the SQLite file: read all of it, in order.
EXPORT = {
    "meta": ("SELECT * FROM meta ORDER BY name", "INSERT INTO meta VALUES (?, ?)"),
    "rows": ("SELECT * FROM rows ORDER BY seq", "INSERT INTO rows VALUES (?, ?, ?, ?, ?)"),
    "nodes": ("SELECT * FROM nodes ORDER BY level, i", "INSERT INTO nodes VALUES (?, ?, ?)"),
    "checkpoints": ("SELECT * FROM checkpoints ORDER BY size", "INSERT INTO checkpoints VALUES (?, ?)"),
    "keys": ("SELECT * FROM keys ORDER BY i", "INSERT INTO keys VALUES (?, ?, ?, ?)"),
    "leases": ("SELECT * FROM leases ORDER BY lease_id", "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?)"),
    "totals": (
        "SELECT * FROM totals ORDER BY month, tenant, key",
        "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    ),
}
