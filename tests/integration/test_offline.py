"""No process of the cluster connects to another machine."""

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import ray

PROBES = {"169.254.169.254", "metadata.google.internal"}
"""Whom Ray's dashboard asks, at the start of a head node, whether it runs in a cloud."""
ELSEWHERE = "192.0.2.77"


@ray.remote(num_cpus=0)
def look_up_elsewhere() -> None:
    """What the test would notice of a library."""
    socket.getaddrinfo(ELSEWHERE, 443, flags=socket.AI_NUMERICHOST)


def test_the_whole_graph_processes_a_file_without_a_call_of_another_machine(
    demo: str, process: Callable[..., httpx.Response], demo_audio: Path, calls_file: Path
) -> None:
    tasks = {"tasks": ["transcribe", "diarization", "emotion"]}
    answer = process(demo, demo_audio / "dialogue-en.flac", tasks)
    assert answer.status_code == 200, answer.text
    ray.get(look_up_elsewhere.remote())
    known = {ray.util.get_node_ip_address(), *PROBES}
    calls = calls_file.read_text(encoding="utf-8").splitlines()
    (call,) = (call for call in calls if call.split(" ", 1)[0] not in known)
    assert call.startswith(f"{ELSEWHERE} ")
