"""The store of jobs in SQL: SQLite for one machine, PostgreSQL for several.

Every operation is one statement in a transaction of its own, so it is atomic on both databases.
A lease is a token in the row: every write of a worker names the token that it was given, and a
token that was replaced meanwhile matches no row. That alone makes a job end once.

Jobs that ended stay for days, those that have not are few. What runs at every submission or poll
therefore reads an index of the few, never the table.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from infra.job_table import HAS_AUDIO, JOBS, NO_AUDIO, NOT_ENDED, connect, create
from speech.errors import Overloaded, SpeechError
from speech.jobs.states import Backlog, Job, Lease, NewJob

_c = JOBS.c
_COLUMNS = [_c[name] for name in Job.__dataclass_fields__ if name != "result"]


class SqlJobStore:
    """Implements :class:`speech.jobs.states.JobStore` for any number of threads and processes.

    ``url`` is one of SQLAlchemy. Clocks of machines that share a store must agree much better than
    the length of a lease: otherwise work is done twice, though its result is still stored once.
    Raises Overloaded if the database cannot be reached.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._engine = connect(url)
        with self._connection() as connection:
            create(connection)

    def close(self) -> None:
        """Close the connections; the store may not be used after."""
        self._engine.dispose()

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (InterfaceError, NoConnection, OperationalError) as error:
            raise Overloaded("the job store does not answer") from error

    def add(self, job: NewJob) -> Job | None:
        """See :meth:`speech.jobs.states.JobStore.add`."""
        now = self._clock()
        statement = (
            sa.insert(JOBS)
            .values(
                id=job.id,
                owner=job.owner,
                state="queued",
                request=job.request,
                fingerprint=job.fingerprint,
                idempotency_key=job.idempotency_key,
                audio_bytes=job.audio_bytes,
                created_at=now,
                due_at=now,
                attempts=0,
                seconds_done=0.0,
                webhook_url=job.webhook_url,
                webhook_attempts=0,
            )
            .returning(*_COLUMNS)
        )
        try:
            with self._connection() as connection:
                return _job(connection.execute(statement).one())
        except IntegrityError:
            return None

    def find(self, owner: str, id: str) -> Job | None:
        """See :meth:`speech.jobs.states.JobStore.find`."""
        return self._one(sa.select(*_COLUMNS, _c.result).where(_c.id == id, _c.owner == owner))

    def find_by_key(self, owner: str, idempotency_key: str) -> Job | None:
        """See :meth:`speech.jobs.states.JobStore.find_by_key`."""
        used = (_c.owner == owner, _c.idempotency_key == idempotency_key)
        return self._one(sa.select(*_COLUMNS, _c.result).where(*used))

    def page(self, owner: str, limit: int, after: str | None) -> Sequence[Job]:
        """See :meth:`speech.jobs.states.JobStore.page`."""
        order = sa.tuple_(_c.created_at, _c.id)
        statement = (
            sa.select(*_COLUMNS)
            .where(_c.owner == owner)
            .order_by(_c.created_at.desc(), _c.id.desc())
            .limit(limit)
        )
        if after is not None:
            last = JOBS.alias()
            place = sa.select(last.c.created_at, last.c.id).where(
                last.c.id == after, last.c.owner == owner
            )
            statement = statement.where(order < place.scalar_subquery())
        with self._connection() as connection:
            return [_job(row) for row in connection.execute(statement)]

    def cancel(self, owner: str, id: str) -> Job | None:
        """See :meth:`speech.jobs.states.JobStore.cancel`."""
        self._write(self._ended("cancelled").where(_c.id == id, _c.owner == owner, NOT_ENDED))
        return self.find(owner, id)

    def backlog(self) -> Backlog:
        """See :meth:`speech.jobs.states.JobStore.backlog`."""

        def count(state: str) -> sa.ColumnElement[int]:
            return sa.func.count().filter(_c.state == state)

        statement = sa.select(count("queued"), count("processing")).where(NOT_ENDED)
        with self._connection() as connection:
            queued, processing = connection.execute(statement).one()
        return Backlog(queued, processing)

    def stored_bytes(self) -> int:
        """See :meth:`speech.jobs.states.JobStore.stored_bytes`."""
        stored = sa.func.coalesce(sa.func.sum(_c.audio_bytes), 0)
        with self._connection() as connection:
            return int(connection.execute(sa.select(stored).where(HAS_AUDIO)).scalar_one())

    def take(self, lease_s: float) -> Lease | None:
        """See :meth:`speech.jobs.states.JobStore.take`."""
        now = self._clock()
        return self._take(
            (NOT_ENDED, _c.state == "queued", _c.due_at <= now),
            {
                "state": "processing",
                "attempts": _c.attempts + 1,
                "started_at": sa.func.coalesce(_c.started_at, now),
                "stage": None,
                "seconds_done": 0.0,
            },
            lease_s,
        )

    def take_expired(self, lease_s: float) -> Lease | None:
        """See :meth:`speech.jobs.states.JobStore.take_expired`."""
        expired = (NOT_ENDED, _c.state == "processing", _c.lease_until < self._clock())
        return self._take(expired, {}, lease_s)

    def _take(
        self, which: Sequence[sa.ColumnElement[bool]], values: Mapping[str, Any], lease_s: float
    ) -> Lease | None:
        token = uuid.uuid4().hex
        leased = {"lease": token, "lease_until": self._clock() + lease_s}
        statement = _first(which, _c.created_at).values({**values, **leased}).returning(*_COLUMNS)
        job = self._one(statement)
        return None if job is None else Lease(job, token)

    def renew(self, lease: Lease, lease_s: float, stage: str | None, seconds_done: float) -> bool:
        """See :meth:`speech.jobs.states.JobStore.renew`."""
        until = self._clock() + lease_s
        held = _held(lease).values(lease_until=until, stage=stage, seconds_done=seconds_done)
        return self._write(held) > 0

    def complete(self, lease: Lease, result: str) -> bool:
        """See :meth:`speech.jobs.states.JobStore.complete`."""
        statement = self._ended("completed", result=result, error=None, error_code=None)
        return self._write(statement.where(*_holds(lease))) > 0

    def fail(self, lease: Lease, error: SpeechError) -> bool:
        """See :meth:`speech.jobs.states.JobStore.fail`."""
        statement = self._ended("failed", **_error_values(error))
        return self._write(statement.where(*_holds(lease))) > 0

    def _ended(self, state: str, **values: Any) -> sa.Update:
        now = self._clock()
        has_webhook = _c.webhook_url.is_not(None)
        return sa.update(JOBS).values(
            state=state,
            ended_at=now,
            lease=None,
            lease_until=None,
            webhook_state=sa.case((has_webhook, "pending")),
            webhook_due_at=sa.case((has_webhook, now)),
            **values,
        )

    def requeue(
        self, lease: Lease, delay_s: float, error: SpeechError | None, *, counted: bool
    ) -> bool:
        """See :meth:`speech.jobs.states.JobStore.requeue`."""
        statement = _held(lease).values(
            state="queued",
            due_at=self._clock() + delay_s,
            lease=None,
            lease_until=None,
            attempts=_c.attempts - (0 if counted else 1),
            **({} if error is None else _error_values(error)),
        )
        return self._write(statement) > 0

    def take_webhook(self, hold_s: float) -> Job | None:
        """See :meth:`speech.jobs.states.JobStore.take_webhook`."""
        now = self._clock()
        due = (_c.webhook_due_at <= now,)
        statement = _first(due, _c.webhook_due_at).values(
            webhook_attempts=_c.webhook_attempts + 1,
            webhook_attempted_at=now,
            webhook_due_at=now + hold_s,
        )
        return self._one(statement.returning(*_COLUMNS))

    def webhook_delivered(self, id: str) -> None:
        """See :meth:`speech.jobs.states.JobStore.webhook_delivered`."""
        webhook = sa.update(JOBS).where(_c.id == id).values(webhook_state="delivered")
        self._write(webhook.values(webhook_due_at=None, webhook_error=None))

    def webhook_failed(self, id: str, retry_in_s: float | None, error: str) -> None:
        """See :meth:`speech.jobs.states.JobStore.webhook_failed`."""
        webhook = sa.update(JOBS).where(_c.id == id, _c.webhook_state == "pending")
        webhook = webhook.values(webhook_error=_storable(error))
        if retry_in_s is None:
            self._write(webhook.values(webhook_state="failed", webhook_due_at=None))
        else:
            self._write(webhook.values(webhook_due_at=self._clock() + retry_in_s))

    def expired_audio(self, ttl_s: float) -> Sequence[str]:
        """See :meth:`speech.jobs.states.JobStore.expired_audio`."""
        expired = _c.ended_at < self._clock() - ttl_s
        with self._connection() as connection:
            return connection.execute(sa.select(_c.id).where(expired, HAS_AUDIO)).scalars().all()

    def audio_removed(self, id: str) -> None:
        """See :meth:`speech.jobs.states.JobStore.audio_removed`."""
        self._write(sa.update(JOBS).where(_c.id == id).values(audio_bytes=None))

    def with_audio(self) -> set[str]:
        """See :meth:`speech.jobs.states.JobStore.with_audio`."""
        statement = sa.select(_c.id).where(HAS_AUDIO)
        with self._connection() as connection:
            return set(connection.execute(statement).scalars())

    def delete_expired(self, ttl_s: float) -> int:
        """See :meth:`speech.jobs.states.JobStore.delete_expired`."""
        expired = _c.ended_at < self._clock() - ttl_s
        return self._write(sa.delete(JOBS).where(expired, NO_AUDIO))

    def _one(self, statement: sa.Executable) -> Job | None:
        with self._connection() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _job(row)

    def _write(self, statement: sa.UpdateBase) -> int:
        with self._connection() as connection:
            return connection.execute(statement).rowcount


def _first(which: Sequence[sa.ColumnElement[bool]], order: sa.Column[Any]) -> sa.Update:
    """An update of the first row that matches and that no other transaction is updating."""
    first = sa.select(_c.id).where(*which).order_by(order).limit(1)
    # PostgreSQL evaluates a scalar subquery once; SQLite has one writer and omits the lock.
    return sa.update(JOBS).where(_c.id == first.with_for_update(skip_locked=True).scalar_subquery())


def _holds(lease: Lease) -> tuple[sa.ColumnElement[bool], ...]:
    return (_c.id == lease.job.id, _c.state == "processing", _c.lease == lease.token)


def _held(lease: Lease) -> sa.Update:
    return sa.update(JOBS).where(*_holds(lease))


def _error_values(error: SpeechError) -> dict[str, str]:
    return {"error_code": error.code, "error": _storable(error.message)}


def _storable(text: str) -> str:
    """PostgreSQL stores no NUL in a text."""
    return text.replace("\0", "")


def _job(row: sa.Row[Any]) -> Job:
    return Job(**row._mapping)
