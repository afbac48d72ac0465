"""The store of jobs: every guarantee of the port, on SQLite and on a real PostgreSQL."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from infra.job_store import SqlJobStore
from speech.errors import EngineFailed, Overloaded, UnsupportedAudio
from speech.jobs.states import Backlog, Lease, NewJob

LEASE_S = 15.0
_numbers = itertools.count()


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs' / 'jobs.sqlite3'}"
    found: str = request.getfixturevalue("postgres")
    return found


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[SqlJobStore]:
    store = SqlJobStore(url, clock)
    yield store
    store.close()


def new_job(**fields: object) -> NewJob:
    job = NewJob(f"job_{next(_numbers)}", "ann", "{}", "print", 10)
    return replace(job, **fields)


def submit(store: SqlJobStore, **fields: object) -> str:
    job = store.add(new_job(**fields))
    assert job is not None
    return job.id


def take(store: SqlJobStore) -> Lease:
    lease = store.take(LEASE_S)
    assert lease is not None
    return lease


def test_a_job_goes_from_queued_over_processing_to_completed(
    store: SqlJobStore, clock: Clock
) -> None:
    id = submit(store, request='{"a": 1}')
    queued = store.find("ann", id)
    assert queued is not None
    assert (queued.state, queued.attempts, queued.created_at) == ("queued", 0, clock.now)
    clock.now += 1
    lease = take(store)
    assert (lease.job.id, lease.job.state, lease.job.request) == (id, "processing", '{"a": 1}')
    assert (lease.job.attempts, lease.job.started_at) == (1, clock.now)
    clock.now += 1
    assert store.complete(lease, '{"text": "да"}')
    done = store.find("ann", id)
    assert done is not None
    assert (done.state, done.result, done.ended_at) == ("completed", '{"text": "да"}', clock.now)


def test_the_oldest_job_is_taken_first_and_only_once(store: SqlJobStore, clock: Clock) -> None:
    first = submit(store)
    clock.now += 1
    second = submit(store)
    assert [take(store).job.id, take(store).job.id] == [first, second]
    assert store.take(LEASE_S) is None


def test_workers_that_ask_at_once_get_different_jobs(url: str) -> None:
    stores = [SqlJobStore(url) for _ in range(4)]
    ids = {submit(stores[0]) for _ in range(40)}
    barrier = threading.Barrier(len(stores))

    def take_all(store: SqlJobStore) -> list[str]:
        barrier.wait()
        taken = []
        while len(taken) < 40 and (lease := store.take(LEASE_S)) is not None:
            taken.append(lease.job.id)
        return taken

    with ThreadPoolExecutor(len(stores)) as pool:
        taken = [id for ids in pool.map(take_all, stores) for id in ids]
    # PostgreSQL skips a row that another transaction is taking: the rest is due at the next poll.
    while (lease := stores[0].take(LEASE_S)) is not None:
        taken.append(lease.job.id)
    assert len(taken) == 40
    assert set(taken) == ids
    for store in stores:
        store.close()


def test_stores_that_open_an_empty_database_at_once_all_work(url: str) -> None:
    barrier = threading.Barrier(8)

    def open_and_use() -> str:
        barrier.wait()
        store = SqlJobStore(url)
        try:
            return submit(store)
        finally:
            store.close()

    with ThreadPoolExecutor(8) as pool:
        ids = {task.result() for task in [pool.submit(open_and_use) for _ in range(8)]}
    assert len(ids) == 8


def test_a_heartbeat_renews_the_lease_and_stores_the_progress(
    store: SqlJobStore, clock: Clock
) -> None:
    id = submit(store)
    lease = take(store)
    for _ in range(3):
        clock.now += LEASE_S - 1
        assert store.renew(lease, LEASE_S, "transcribe", 12.5)
        assert store.take_expired(LEASE_S) is None
    job = store.find("ann", id)
    assert job is not None
    assert (job.stage, job.seconds_done) == ("transcribe", 12.5)


def test_a_job_whose_lease_expired_is_taken_by_one_other_worker(
    store: SqlJobStore, clock: Clock
) -> None:
    id = submit(store)
    take(store)
    clock.now += LEASE_S + 1
    lost = store.take_expired(LEASE_S)
    assert lost is not None
    assert (lost.job.id, lost.job.attempts) == (id, 1)
    assert store.take_expired(LEASE_S) is None


def test_a_stale_worker_changes_nothing(store: SqlJobStore, clock: Clock) -> None:
    id = submit(store)
    stale = take(store)
    clock.now += LEASE_S + 1
    lost = store.take_expired(LEASE_S)
    assert lost is not None
    assert store.requeue(lost, 0.0, EngineFailed("died"), counted=True)
    fresh = take(store)
    assert fresh.job.attempts == 2
    assert not store.renew(stale, LEASE_S, "decode", 0.0)
    assert not store.complete(stale, '"stale"')
    assert not store.fail(stale, EngineFailed("stale"))
    assert not store.requeue(stale, 0.0, None, counted=True)
    assert store.complete(fresh, '"fresh"')
    assert not store.complete(fresh, '"again"')
    assert not store.complete(stale, '"stale"')
    job = store.find("ann", id)
    assert job is not None
    assert (job.state, job.result) == ("completed", '"fresh"')


def test_a_late_worker_whose_job_nobody_took_may_complete(store: SqlJobStore, clock: Clock) -> None:
    submit(store)
    lease = take(store)
    clock.now += 10 * LEASE_S
    assert store.complete(lease, "1")


def test_a_requeued_job_waits_and_keeps_its_error(store: SqlJobStore, clock: Clock) -> None:
    id = submit(store)
    assert store.requeue(take(store), 8.0, EngineFailed("bad\0luck"), counted=True)
    job = store.find("ann", id)
    assert job is not None
    assert (job.state, job.attempts) == ("queued", 1)
    assert (job.error_code, job.error) == ("engine_failed", "badluck")
    clock.now += 7.9
    assert store.take(LEASE_S) is None
    clock.now += 0.1
    assert take(store).job.attempts == 2


def test_an_attempt_that_does_not_count_is_undone(store: SqlJobStore) -> None:
    submit(store)
    assert store.requeue(take(store), 0.0, None, counted=False)
    assert take(store).job.attempts == 1


def test_success_clears_the_error_of_earlier_attempts(store: SqlJobStore) -> None:
    id = submit(store)
    store.requeue(take(store), 0.0, EngineFailed("once"), counted=True)
    store.complete(take(store), "1")
    job = store.find("ann", id)
    assert job is not None
    assert (job.error, job.error_code, job.attempts) == (None, None, 2)


def test_a_failed_job_keeps_its_error_and_is_not_taken_again(store: SqlJobStore) -> None:
    id = submit(store)
    assert store.fail(take(store), UnsupportedAudio("no audio"))
    job = store.find("ann", id)
    assert job is not None
    assert (job.state, job.error_code, job.error) == ("failed", "unsupported_audio", "no audio")
    assert store.take(LEASE_S) is None


def test_cancelling_ends_a_job_that_waits_or_runs_and_nothing_else(store: SqlJobStore) -> None:
    waiting, running, done = submit(store), submit(store), submit(store)
    leases = {lease.job.id: lease for lease in (take(store), take(store), take(store))}
    store.requeue(leases[waiting], 0.0, None, counted=False)
    store.complete(leases[done], "1")
    states = {}
    for id in (waiting, running, done):
        job = store.cancel("ann", id)
        assert job is not None
        states[id] = job.state
    assert states == {waiting: "cancelled", running: "cancelled", done: "completed"}
    assert not store.renew(leases[running], LEASE_S, None, 0.0)
    assert not store.complete(leases[running], "1")
    assert store.take(LEASE_S) is None


def test_jobs_are_their_owners_only(store: SqlJobStore) -> None:
    id = submit(store, owner="ann", idempotency_key="k")
    assert store.find("bob", id) is None
    assert store.cancel("bob", id) is None
    assert store.page("bob", 10, None) == []
    assert store.find_by_key("bob", "k") is None
    job = store.find("ann", id)
    assert job is not None
    assert job.state == "queued"


def test_an_idempotency_key_is_used_once_for_each_owner(store: SqlJobStore) -> None:
    id = submit(store, idempotency_key="k")
    assert store.add(new_job(idempotency_key="k")) is None
    found = store.find_by_key("ann", "k")
    assert found is not None
    assert found.id == id
    assert submit(store, owner="bob", idempotency_key="k") != id
    assert submit(store) != submit(store)


def test_pages_go_from_the_newest_to_the_oldest_without_gaps(
    store: SqlJobStore, clock: Clock
) -> None:
    ids = []
    for number in range(7):
        ids.append(submit(store))
        clock.now += number % 2  # some are of the same moment
    submit(store, owner="bob")
    seen: list[str] = []
    while page := store.page("ann", 3, seen[-1] if seen else None):
        seen += [job.id for job in page]
    assert sorted(seen) == sorted(ids)
    assert seen[0] == ids[-1]
    times = [job.created_at for job in store.page("ann", 10, None)]
    assert times == sorted(times, reverse=True)


def test_the_backlog_and_the_stored_bytes_are_counted(store: SqlJobStore) -> None:
    assert (store.backlog(), store.stored_bytes()) == (Backlog(0, 0), 0)
    for size in (10, 20, 30):
        submit(store, audio_bytes=size)
    done = take(store)
    store.complete(done, "1")
    take(store)
    assert (store.backlog(), store.stored_bytes()) == (Backlog(1, 1), 60)
    store.audio_removed(done.job.id)
    assert store.stored_bytes() == 50


def test_nothing_that_is_repeated_reads_the_jobs_that_ended(store: SqlJobStore, url: str) -> None:
    """The plans of every statement of a submission, an autoscaling tick, and a worker's polls."""
    ended_jobs = sa.text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
        "INSERT INTO speechgraph_jobs (id, owner, state, request, fingerprint, created_at, "
        "ended_at, attempts, seconds_done, webhook_attempts) "
        "SELECT 'old_' || i, 'bob', 'completed', '{}', '-', 1, 1000000, 1, 0, 0 FROM n"
    )
    statements: list[tuple[str, Any]] = []
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(ended_jobs)
        connection.execute(sa.text("ANALYZE speechgraph_jobs"))

    def note(_c: object, _r: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        submit(store)
        store.backlog()
        store.stored_bytes()
        take(store)
        store.take_expired(LEASE_S)
        store.take_webhook(20.0)
        store.expired_audio(1000.0)
        store.with_audio()
        store.delete_expired(1000.0)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert len(statements) == 9
    explain = "EXPLAIN QUERY PLAN " if url.startswith("sqlite") else "EXPLAIN "
    with engine.connect() as connection:
        for statement, parameters in statements:
            plan = connection.exec_driver_sql(explain + statement, parameters).all()
            for step in (str(row[-1]) for row in plan):
                assert "Seq Scan" not in step, statement
                assert "jobs_owner" not in step, statement
                # These two indexes hold the few jobs that have not ended or have audio.
                few = "jobs_backlog" in step or "jobs_audio" in step
                assert "SCAN speechgraph_jobs" not in step or few, statement
    engine.dispose()


def test_a_database_of_an_older_version_gets_the_indexes_of_this_one(
    store: SqlJobStore, url: str
) -> None:
    id = submit(store)
    engine = sa.create_engine(url)

    def indexes() -> set[str | None]:
        return {index["name"] for index in sa.inspect(engine).get_indexes("speechgraph_jobs")}

    wanted = indexes()
    with engine.begin() as connection:
        for name in ("backlog", "audio", "expiry"):
            connection.execute(sa.text(f"DROP INDEX speechgraph_jobs_{name}"))
        old = "CREATE INDEX speechgraph_jobs_state ON speechgraph_jobs (state, due_at)"
        connection.execute(sa.text(old))
    newer = SqlJobStore(url)
    assert indexes() == wanted
    assert newer.find("ann", id) is not None
    newer.close()
    engine.dispose()


def test_a_database_of_an_older_version_gets_the_columns_of_this_one(
    store: SqlJobStore, url: str
) -> None:
    id = submit(store, webhook_url="http://ann.example/done")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for name in ("webhook_attempted_at", "webhook_error"):
            connection.execute(sa.text(f"ALTER TABLE speechgraph_jobs DROP COLUMN {name}"))
    engine.dispose()
    with ThreadPoolExecutor(4) as pool:  # as replicas that start together
        newer = list(pool.map(lambda _: SqlJobStore(url), range(4)))
    newer[0].cancel("ann", id)
    newer[0].take_webhook(20.0)
    newer[0].webhook_failed(id, None, "status 404")
    job = newer[1].find("ann", id)
    assert job is not None
    assert (job.state, job.webhook_error) == ("cancelled", "status 404")
    for opened in newer:
        opened.close()


def test_audio_and_then_the_job_expire_after_their_ttl(store: SqlJobStore, clock: Clock) -> None:
    done, waiting = submit(store), submit(store)
    store.complete(take(store), "1")
    clock.now += 100
    assert store.expired_audio(101) == []
    assert store.expired_audio(99) == [done]
    assert store.delete_expired(99) == 0, "a job that still has audio is not deleted"
    store.audio_removed(done)
    assert store.expired_audio(99) == []
    assert store.with_audio() == {waiting}
    assert store.delete_expired(101) == 0
    assert store.delete_expired(99) == 1
    assert store.find("ann", done) is None
    assert store.find("ann", waiting) is not None


@pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
def test_a_webhook_is_due_when_its_job_ends(store: SqlJobStore, clock: Clock, end: str) -> None:
    id = submit(store, webhook_url="http://ann.example/done")
    submit(store)
    assert store.take_webhook(20.0) is None
    if end == "complete":
        store.complete(take(store), "1")
    elif end == "fail":
        store.fail(take(store), EngineFailed("no"))
    else:
        store.cancel("ann", id)
    job = store.take_webhook(20.0)
    assert job is not None
    assert (job.id, job.webhook_state, job.webhook_attempts) == (id, "pending", 1)
    assert store.take_webhook(20.0) is None
    clock.now += 20.0
    again = store.take_webhook(20.0)
    assert again is not None, "whoever held it has died"
    store.webhook_failed(id, 50.0, "status 500\0")
    pending = store.find("ann", id)
    assert pending is not None
    assert (pending.webhook_error, pending.webhook_attempted_at) == ("status 500", clock.now)
    assert pending.webhook_due_at == clock.now + 50.0
    clock.now += 49.0
    assert store.take_webhook(20.0) is None
    clock.now += 1.0
    third = store.take_webhook(20.0)
    assert third is not None
    assert third.webhook_attempts == 3
    store.webhook_delivered(id)
    clock.now += 1000.0
    assert store.take_webhook(20.0) is None
    delivered = store.find("ann", id)
    assert delivered is not None
    assert delivered.webhook_state == "delivered"
    assert (delivered.webhook_error, delivered.webhook_due_at) == (None, None)
    assert delivered.webhook_attempted_at == clock.now - 1000.0


def test_a_webhook_that_failed_for_the_last_time_is_not_due_again(
    store: SqlJobStore, clock: Clock
) -> None:
    id = submit(store, webhook_url="http://ann.example/done")
    store.cancel("ann", id)
    store.take_webhook(20.0)
    store.webhook_failed(id, None, "status 404")
    clock.now += 1000.0
    assert store.take_webhook(20.0) is None
    job = store.find("ann", id)
    assert job is not None
    assert (job.webhook_state, job.webhook_error) == ("failed", "status 404")
    assert job.webhook_due_at is None


def test_a_job_is_on_disk_for_whoever_opens_the_store_next(store: SqlJobStore, url: str) -> None:
    id = submit(store)
    other = SqlJobStore(url)
    assert other.find("ann", id) is not None
    other.close()


def test_a_database_that_does_not_answer_is_an_overload(tmp_path: Path) -> None:
    with pytest.raises(Overloaded):
        SqlJobStore(f"postgresql://postgres@/none?host={tmp_path}")
