"""Keys and their limits hold for a service of several ingress replicas, whichever of them dies."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray.util.state import list_actors
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from deployments.key_limits import COUNTER
from tests.integration.conftest import Service
from tests.integration.test_faults import eventually, replica_pids

KEY = "7f0c5ecretf0rall"
PLACES = 6


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture(scope="module")
def guarded(application: Service, demo_args: dict[str, Any], key_file: Path) -> Iterator[str]:
    """A small graph with two ingress replicas that ask for keys; its base URL."""
    args = {
        "offline": True,
        "ingress": {
            **demo_args["ingress"],
            "default_transcriber": "demo-vosk",
            "keys_file": str(key_file),
            # Both on the head node, for the proxy there prefers its own node.
            "resources": {"num_cpus": 4.5},
            "sessions": {"start_timeout_s": 120},
            "scaling": {"min_replicas": 2, "max_replicas": 2, "target_ongoing_requests": 100},
            "lifecycle": {"health_check_period_s": 1.0},
        },
        "decoder": demo_args["decoder"],
        "onnx_asr": {**demo_args["onnx_asr"], "preload": ["demo-vosk"]},
    }
    with application("keys", args) as url:
        yield url


def statuses(url: str, key: str, requests: int = 40) -> Counter[int]:
    """What so many requests, several of them at once, are answered."""
    with (
        httpx.Client(headers={"X-API-Key": key}, timeout=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = pool.map(lambda _: client.get(f"{url}/v1/models/demo-vosk"), range(requests))
        return Counter(answer.status_code for answer in answers)


def open_socket(url: str, key: str) -> ClientConnection | int:
    """A socket that stays open, or the status that it was refused with."""
    try:
        return connect(f"{url.replace('http', 'ws')}/v1/ws?token={key}", open_timeout=30)
    except InvalidStatus as refused:
        return refused.response.status_code


def fill(url: str, key: str, sockets: ExitStack, most: int = PLACES + 1) -> list[ClientConnection]:
    """Sockets until one is refused."""
    found: list[ClientConnection] = []
    while len(found) < most:
        socket = open_socket(url, key)
        if isinstance(socket, int):
            assert socket == 429
            break
        found.append(sockets.enter_context(socket))
    return found


def is_open(socket: ClientConnection) -> bool:
    try:
        socket.recv(timeout=0)
    except TimeoutError:
        return True
    except ConnectionClosed:
        return False
    raise AssertionError("there is no final")


def logs() -> Path:
    node = ray._private.worker._global_node
    assert node is not None
    return Path(node.get_session_dir_path()) / "logs"


def served_by() -> dict[str, int]:
    """Requests by ingress replica, as their access logs have it."""
    files = (logs() / "serve").glob("replica_keys_Ingress_*.log")
    return {file.name: file.read_text().count(" GET /keys ") for file in files}


def test_a_change_of_the_file_reaches_every_replica_at_once(guarded: str, key_file: Path) -> None:
    before = served_by()
    assert statuses(guarded, "new") == {403: 40}
    key_file.write_text(f"{KEY}\nnew\n")
    assert statuses(guarded, "new") == {200: 40}
    key_file.write_text(f"{KEY}\n")
    assert statuses(guarded, "new") == {403: 40}
    served = [count - before.get(name, 0) for name, count in served_by().items()]
    assert len(served) == 2
    assert all(served), "both were asked"


def test_a_rate_is_counted_across_the_replicas(guarded: str, key_file: Path) -> None:
    key_file.write_text(f"{KEY} rate=12\n")
    started = time.monotonic()
    passed = statuses(guarded, KEY)[200]
    refilled = (time.monotonic() - started) * 12 / 60
    assert 12 <= passed <= 12 + refilled, "two that count alone let 24 through"


def test_every_replica_accepts_a_client_secret(guarded: str, key_file: Path) -> None:
    key_file.write_text(f"{KEY}\n")
    made = httpx.post(
        f"{guarded}/v1/realtime/client_secrets", headers={"X-API-Key": KEY}, json={}, timeout=60
    )
    offered: Any = ["realtime", f"openai-insecure-api-key.{made.json()['value']}"]

    def greeting(_: int) -> str | bytes:
        url = f"{guarded.replace('http', 'ws')}/v1/realtime"
        with connect(url, subprotocols=offered, open_timeout=30) as socket:
            return socket.recv()

    with ThreadPoolExecutor(8) as pool:
        assert all('"session.created"' in str(first) for first in pool.map(greeting, range(24)))


def test_places_are_counted_across_the_replicas_and_come_back(guarded: str, key_file: Path) -> None:
    key_file.write_text(f"{KEY} concurrent={PLACES}\n")
    with ExitStack() as sockets:
        assert len(fill(guarded, KEY, sockets)) == PLACES
        assert statuses(guarded, KEY, 10) == {429: 10}
    eventually(lambda: statuses(guarded, KEY, 1)[200] == 1)
    with ExitStack() as sockets:
        assert len(fill(guarded, KEY, sockets)) == PLACES


def test_a_replica_that_dies_gives_its_places_back_and_no_more(
    guarded: str, key_file: Path
) -> None:
    key_file.write_text(f"{KEY} concurrent={PLACES}\n")
    with ExitStack() as sockets:
        held: list[ClientConnection] = []
        eventually(lambda: bool(held.extend(fill(guarded, KEY, sockets)) or len(held) == PLACES))
        victim = min(replica_pids("keys", "Ingress"))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: not all(map(is_open, held)))
        left = [socket for socket in held if is_open(socket)]
        assert 0 < len(left) < PLACES
        eventually(lambda: bool(left.extend(fill(guarded, KEY, sockets)) or len(left) == PLACES))
        assert fill(guarded, KEY, sockets) == []
        assert all(map(is_open, left))
    eventually(lambda: len(replica_pids("keys", "Ingress") - {victim}) == 2)


def counter_pids() -> set[int]:
    here = ray.get_runtime_context().gcs_address
    actors = list_actors(here, filters=[("state", "=", "ALIVE")], limit=1000)
    return {actor.pid for actor in actors if COUNTER in actor.name and actor.pid}


def test_without_the_counter_the_replicas_continue_and_report_their_places_to_the_next_one(
    guarded: str, key_file: Path
) -> None:
    key_file.write_text(f"{KEY} concurrent={PLACES}\n")
    with ExitStack() as sockets:
        held: list[ClientConnection] = []
        eventually(lambda: bool(held.extend(fill(guarded, KEY, sockets)) or len(held) == PLACES))
        held.pop().close()
        (counter,) = counter_pids()
        os.kill(counter, signal.SIGKILL)
        answers = statuses(guarded, KEY, 10)
        assert set(answers) <= {200, 429}
        assert answers[200], "one place is free"
        eventually(lambda: bool(counter_pids() - {counter}))

        def full() -> bool:
            with ExitStack() as more:
                return len(fill(guarded, KEY, more)) == 1

        eventually(full)
        assert all(map(is_open, held))


def test_no_key_is_in_any_log(guarded: str, key_file: Path) -> None:
    key_file.write_text(f"{KEY}\n")
    assert statuses(guarded, KEY) == {200: 40}
    with ExitStack() as sockets:
        fill(guarded, KEY, sockets, most=2)
    texts = [file.read_bytes() for file in logs().rglob("*") if file.is_file()]
    assert any(b" WS /keys " in text for text in texts), "sockets are logged"
    assert not any(KEY.encode() in text for text in texts)
