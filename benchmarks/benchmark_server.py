"""The server under load: a graph for live streams, and the resources that its processes use."""

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.decode_ceiling import CORES
from configs.catalogue import CATALOGUE_PATH, REPOSITORY_ROOT

FULL = "full-size"
MODELS = {"demo": "demo-vosk-streaming", "full": FULL}


def catalogue_with(folder: Path) -> Path:
    """The catalogue with the untrained model, written into ``folder`` with the model's files."""
    files = folder / FULL
    write = [sys.executable, "-m", "benchmarks.full_size", str(files)]
    subprocess.run(write, cwd=REPOSITORY_ROOT, check=True)
    models = yaml.safe_load(CATALOGUE_PATH.read_text(encoding="utf-8"))
    entry = {
        "id": FULL,
        "family": "onnx_asr",
        "format": "streaming_nemo_ctc",
        "source": {"path": str(files)},
        "licence": "Apache-2.0",
        "memory_mb": 200,
    }
    models["models"].append(entry)
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(models, allow_unicode=True), encoding="utf-8")
    return path


def graph_config(arguments: argparse.Namespace, catalogue: Path) -> dict[str, Any]:
    """A graph of a fixed size for live streams: replicas share the cores, which decode in each."""

    def fixed(replicas: int, **more: Any) -> dict[str, Any]:
        return {
            "scaling": {"min_replicas": replicas, "max_replicas": replicas},
            "resources": {"num_cpus": max(CORES // replicas, 1)},
            **more,
        }

    args = {
        "catalogue": str(catalogue),
        "offline": True,
        "ingress": fixed(
            arguments.ingresses,
            default_transcriber="demo-vosk",
            sessions={"max_sessions": arguments.most},
        ),
        "decoder": {"resources": {"num_cpus": 0.1}},
        "onnx_asr": {
            "default_model": "demo-vosk",
            "device": "cpu",
            "resources": {"num_cpus": 0.1},
        },
        "live": fixed(
            arguments.recognisers,
            placement=arguments.placement,
            default_model=MODELS[arguments.model],
            device="cpu",
            max_streams=arguments.most,
        ),
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8800},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": "speech",
                "route_prefix": "/",
                "import_path": "graphs.speech:build",
                "args": args,
            }
        ],
    }


@contextmanager
def running_graph(
    config: Mapping[str, Any], folder: Path, haproxy: bool
) -> Iterator[tuple[str, int]]:
    """Run a graph in the context; yields its URL and the id of its process."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {
        **os.environ,
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no load balancer here
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "graphs.launch", str(path)],
        cwd=REPOSITORY_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if line.split()[:1] == ["service"]:
                yield line.split()[1].replace("http", "ws", 1), server.pid
                break
        else:
            raise SystemExit("the graph did not start")
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:  # Serve did not end in time
            for pid in list(process_tree(server.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            server.wait()


def process_tree(root: int) -> Iterator[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text()
        except OSError:  # the process has ended
            continue
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    yield from found


def usage(root: int, value: Callable[[Path], float]) -> Counter[str]:
    """A figure of the process tree, summed by kind of process."""
    total: Counter[str] = Counter()
    for pid in process_tree(root):
        folder = Path(f"/proc/{pid}")
        try:
            total[_title(folder)] += value(folder)  # type: ignore[assignment]
        except OSError:
            continue
    return total


def cpu_s(process: Path) -> float:
    """Processor time of a process folder in ``/proc``, seconds."""
    stat = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(process: Path) -> float:
    """Resident memory of a process folder in ``/proc``, MB."""
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _title(process: Path) -> str:
    command = (process / "cmdline").read_bytes().decode().replace("\0", " ")
    for name in ("Ingress", "Live", "haproxy", "Proxy", "OnnxAsr", "Decoder"):
        if name in command:
            return name
    return "other"
