"""The table of the jobs on SQLite and PostgreSQL: columns, indexes, connections, creation."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

BUSY_TIMEOUT_MS = 10_000
"""How long a process waits for another one that is writing to the same SQLite file."""
POSTGRES_TIMEOUTS = {"connect_timeout": 5, "options": "-c statement_timeout=10s"}
_CREATION_LOCK = 0x73706A6F62  # "spjob"
"""PostgreSQL's advisory lock for creating table and indexes: IF NOT EXISTS alone fails in several
ways when another process creates the same at the same time."""

JOBS = sa.Table(
    "speechgraph_jobs",
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("audio_bytes", sa.BigInteger),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("due_at", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("lease", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("stage", sa.Text),
    sa.Column("seconds_done", sa.Double, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("webhook_url", sa.Text),
    sa.Column("webhook_state", sa.Text),
    sa.Column("webhook_attempts", sa.Integer, nullable=False),
    sa.Column("webhook_attempted_at", sa.Double),
    sa.Column("webhook_due_at", sa.Double),
    sa.Column("webhook_error", sa.Text),
    sa.Column("result", sa.Text),
    sa.UniqueConstraint("owner", "idempotency_key"),
)
_c = JOBS.c
NOT_ENDED = _c.ended_at.is_(None)
HAS_AUDIO = _c.audio_bytes.is_not(None)
NO_AUDIO = _c.audio_bytes.is_(None)


def _partial_index(name: str, where: sa.ColumnElement[bool], *columns: sa.Column[Any]) -> sa.Index:
    return sa.Index(name, *columns, sqlite_where=where, postgresql_where=where)


_INDEXES = (
    sa.Index("speechgraph_jobs_owner", _c.owner, _c.created_at, _c.id),
    sa.Index("speechgraph_jobs_webhook", _c.webhook_due_at),
    _partial_index("speechgraph_jobs_backlog", NOT_ENDED, _c.state, _c.due_at),
    _partial_index("speechgraph_jobs_audio", HAS_AUDIO, _c.ended_at, _c.id, _c.audio_bytes),
    _partial_index("speechgraph_jobs_expiry", NO_AUDIO, _c.ended_at),
)
_DROP_INDEX_OF_OLDER_VERSIONS = sa.text("DROP INDEX IF EXISTS speechgraph_jobs_state")


def connect(url: str) -> sa.Engine:
    """An engine for a URL of SQLAlchemy; the directory of an SQLite file is made."""
    place = sa.make_url(url)
    sqlite = place.get_backend_name() == "sqlite"
    engine = sa.create_engine(
        place,
        isolation_level="AUTOCOMMIT",
        pool_pre_ping=True,
        connect_args={} if sqlite else POSTGRES_TIMEOUTS,
    )
    if sqlite:
        Path(str(place.database)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sa.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def create(connection: sa.Connection) -> None:
    """Create the table, its columns and its indexes, those that are missing; one transaction."""
    if connection.dialect.name == "postgresql":
        connection.execution_options(isolation_level="READ COMMITTED")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    connection.execute(CreateTable(JOBS, if_not_exists=True))
    _add_missing_columns(connection)
    for index in _INDEXES:
        connection.execute(CreateIndex(index, if_not_exists=True))
    connection.execute(_DROP_INDEX_OF_OLDER_VERSIONS)
    connection.commit()


def _add_missing_columns(connection: sa.Connection) -> None:
    """Add the columns that a table of an older version lacks; all of them may be NULL."""
    found = {column["name"] for column in sa.inspect(connection).get_columns(JOBS.name)}
    for column in JOBS.columns:
        if column.name not in found:
            kind = column.type.compile(connection.dialect)
            add = f"ALTER TABLE {JOBS.name} ADD COLUMN {column.name} {kind}"
            connection.execute(sa.text(add))


def _prepare_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _enable_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _enable_wal(cursor: sqlite3.Cursor) -> None:
    """Enable the write-ahead log; the busy timeout does not cover that, so retry here."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
