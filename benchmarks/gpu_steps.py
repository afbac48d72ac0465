"""What is checked on a GPU: libraries, Whisper in each compute type, the graph, a full memory.

With the device "cpu" the same steps run without a GPU, as far as they can.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml

from benchmarks.benchmark_server import process_tree, resident_mb, running_graph, usage
from benchmarks.step_runner import Facts, Skipped, Step, Unmet
from clients.demo import AUDIO, DIALOGUES, REQUEST
from configs.catalogue import REPOSITORY_ROOT

COMPUTE_TYPES = (
    "auto",
    "float32",
    "bfloat16",
    "float16",
    "int8_float32",
    "int8_bfloat16",
    "int8_float16",
)
SHARES = {"whisper": 0.4, "onnx_asr": 0.1, "emotion": 0.1, "diarization": 0.25}
"""The part of the GPU that each deployment of models gets."""
ONNX_RECOGNISER = "demo-nemo"
"""Of the recognisers in ONNX one that runs on onnxruntime; sherpa-onnx's wheel has no CUDA."""
RECOGNISERS = ("demo-whisper", ONNX_RECOGNISER)
LONG = AUDIO / "meeting-10min.opus"
STREAMS = 32
BOUNDARY_S = 0.05
"""What a boundary of a turn may move by; a frame of the model is 17 ms."""
PROBABILITY = 0.05
"""What the probability of an emotion may move by."""
RECOVERY_S = 60.0
SPEED = Path("whisper_speed.json")
"""Written row by row, so that it has what was measured when a step is ended."""
PACKAGES = ("torch", "ctranslate2", "onnxruntime-gpu", "onnxruntime", "pyannote.audio", "ray")

Device = Literal["cpu", "cuda"]
Answers = dict[str, Any]


def gpu_query(*fields: str) -> list[str] | None:
    """Values that ``nvidia-smi`` reports of the first GPU; None without one."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}"]
    try:
        run = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return [value.strip() for value in run.stdout.split(",")]


def memory_mb(device: Device) -> float | None:
    """The used memory of the GPU; with "cpu" that of this process and its descendants."""
    if device == "cpu":
        return usage(os.getpid(), resident_mb).total()
    found = gpu_query("memory.used")
    return float(found[0]) if found else None


def compared(expected: Answers, found: Answers) -> Facts:
    """Raise Unmet where answers differ in text, turns or emotions from those on the CPU."""
    different = [
        f"{name}: {part}"
        for name in expected
        for part in expected[name]
        if not _same(expected[name][part], found.get(name, {}).get(part))
    ]
    if different:
        raise Unmet("; ".join(different), {"expected": expected, "found": found})
    return {"summary": f"{len(expected)} answers as on the CPU"}


def _same(expected: Any, found: Any) -> bool:
    """Equal, numbers about so: a time by BOUNDARY_S, a probability by PROBABILITY."""
    if isinstance(expected, float) and isinstance(found, float):
        return abs(expected - found) <= BOUNDARY_S
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            abs(expected[label] - found[label]) <= PROBABILITY for label in expected
        )
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(_same, expected, found))
    return bool(expected == found)


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """Of the result block of ``/v1/process`` what has to be the same on every device."""
    return {
        "text": [segment["text"].strip() for segment in result["tra"]["segments"]],
        "turns": [[turn["start"], turn["end"], turn["speaker"]] for turn in result["dia"]["turns"]],
        "emotions": [segment["emotional"] for segment in result["emo"]["segments"]],
    }


class GpuCheck:
    """The steps, and what one of them leaves to the next."""

    def __init__(self, device: Device, folder: Path, commands: Sequence[str]) -> None:
        """``commands`` run at the end, while the graph is up, with SPEECHGRAPH_URL set."""
        self._device = device
        self._folder = folder
        self._commands = commands
        self._texts: dict[str, dict[str, list[str]]] = {}
        """Of the CPU, by compute type."""
        self._answers: Answers | None = None
        self._graph = ExitStack()
        self._graph_pid: int | None = None
        self._url: str | None = None

    def steps(self) -> list[Step]:
        """All steps, in their order."""
        return [
            Step("machine", 30, self._machine),
            *(
                Step(f"whisper on the CPU, {kind}", 60, partial(self._whisper_on_cpu, kind))
                for kind in ("float32", "int8_float32")
            ),
            *(Step(f"whisper, {kind}", 60, partial(self._whisper, kind)) for kind in COMPUTE_TYPES),
            Step("graph on the CPU", 120, self._graph_on_cpu),
            Step("graph", 120, self._start),
            Step("answers", 60, self._compare),
            Step("devices", 20, self._devices),
            Step("out of memory", 120, self._out_of_memory),
            Step("answers after it", 60, self._compare),
            Step("overhead of the service", 120, self._overhead),
            Step("live streams", 90, self._streams),
            *(Step(command, 300, partial(self._run, command)) for command in self._commands),
            Step("stop", 60, self.close),
            Step("speed of Whisper", 240, self._speed),
        ]

    def close(self) -> Facts:
        """Stop the graph."""
        self._url = self._graph_pid = None
        self._graph.close()
        return {}

    def end(self) -> None:
        """End all that this process has started and still runs."""
        self._graph_pid = None
        self.end_processes()

    def end_processes(self) -> None:
        """End all that this process has started, except a graph that is up."""
        kept = set() if self._graph_pid is None else set(process_tree(self._graph_pid))
        for pid in set(process_tree(os.getpid())) - kept - {os.getpid()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _machine(self) -> Facts:
        versions = {"python": platform.python_version()}
        for package in PACKAGES:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        gpu = gpu_query("name", "memory.total", "driver_version")
        if gpu is None and self._device == "cuda":
            raise Unmet("nvidia-smi reports no GPU", {"versions": versions})
        name = f"{gpu[0]}, {gpu[1]} MB, driver {gpu[2]}" if gpu else "no GPU"
        shown = ", ".join(f"{package} {version}" for package, version in versions.items())
        return {"summary": f"{name}; {os.cpu_count()} cores; {shown}", "versions": versions}

    def _whisper_on_cpu(self, compute_type: str) -> Facts:
        facts = _whisper_texts("cpu", compute_type)
        self._texts[compute_type] = facts["texts"]
        return {"summary": f"{sum(map(len, facts['texts'].values()))} segments", **facts}

    def _whisper(self, compute_type: str) -> Facts:
        facts = _whisper_texts(self._device, compute_type)
        # Weights of 8 bits may have another word than those of full precision, on any device.
        reference = "int8_float32" if facts["used"].startswith("int8") else "float32"
        if reference not in self._texts:
            raise Skipped("there is no text of the CPU to compare with")
        counts = [
            f"{name}: {sum(map(str.__eq__, expected, facts['texts'][name]))} of {len(expected)}"
            for name, expected in self._texts[reference].items()
            if expected != facts["texts"][name]
        ]
        if counts:
            raise Unmet(f"used {facts['used']}; " + "; ".join(counts), facts)
        return {"summary": f"used {facts['used']}, text as on the CPU in {reference}", **facts}

    def _graph_on_cpu(self) -> Facts:
        with running_graph(self._config("cpu"), self._folder, haproxy=False) as (url, _):
            self._answers = _answers(_http(url))
        return {"summary": f"{len(self._answers)} answers", "answers": self._answers}

    def _start(self) -> Facts:
        running = running_graph(self._config(self._device), self._folder, haproxy=False)
        url, self._graph_pid = self._graph.enter_context(running)
        self._url = _http(url)
        if self._device == "cpu":
            return {"summary": "all four models"}
        shares = ", ".join(f"{name} {share}" for name, share in SHARES.items())
        return {"summary": f"all four models: {shares} of the GPU"}

    def _config(self, device: Device) -> dict[str, Any]:
        """The demo's graph; on a GPU each model deployment has its share of it."""
        path = REPOSITORY_ROOT / "configs" / "demo.yaml"
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["http_options"]["port"] = 8800
        args = config["applications"][0]["args"]
        args["jobs"]["directory"] = str(self._folder / "jobs")
        del args["diarization"]["preload"]
        args["onnx_asr"] |= {"default_model": ONNX_RECOGNISER, "preload": [ONNX_RECOGNISER]}
        if device == "cuda":
            for name, share in SHARES.items():
                args[name] |= {"device": "auto"}
                args[name]["resources"]["num_gpus"] = share
        return config

    def _compare(self) -> Facts:
        if self._answers is None:
            raise Skipped("there are no answers of the CPU to compare with")
        return compared(self._answers, _answers(self._running()))

    def _devices(self) -> Facts:
        rows = httpx.get(f"{self._running()}/cache/stats", timeout=10).json()
        asked = [row for row in rows if self._device == "cpu" or row["asked"] != "cpu"]
        used = "; ".join(
            " ".join(filter(None, map(row.get, ("model_name", "device", "encoder", "fallback"))))
            for row in asked
        )
        if any(row["device"] != self._device for row in asked):
            raise Unmet(used, {"models": rows})
        return {"summary": used, "models": rows}

    def _out_of_memory(self) -> Facts:
        url = self._running()
        if self._device == "cpu":
            raise Skipped("there is no GPU to fill")
        with filled_gpu():
            full = {model: _send(url, LONG, model) for model in RECOGNISERS}
        facts: Facts = {
            model: [response.status_code, response.headers.get("Retry-After"), response.text[:300]]
            for model, response in full.items()
        }
        statuses = ", ".join(f"{model} {found[0]}" for model, found in facts.items())
        for response in full.values():
            if response.status_code != 200 and not _is_out_of_memory(response):
                raise Unmet(f"{statuses}: neither an answer nor 503 out_of_memory", facts)
        if all(response.status_code == 200 for response in full.values()):
            raise Unmet(f"{statuses}: the memory was full, and nothing needed more", facts)
        seconds = recovered_after_s(url)
        return {"summary": f"{statuses}; answered {seconds:.1f} s after it was freed", **facts}

    def _run(self, command: str) -> Facts:
        environment = {**os.environ, "SPEECHGRAPH_URL": self._running()}
        facts = _output(shlex.split(command), env=environment)
        return {"summary": facts["output"].strip().rpartition("\n")[2], **facts}

    def _overhead(self) -> Facts:
        """The rows of ``benchmarks.overhead`` against the engines in process."""
        rounds = 1 if self._device == "cpu" else 9
        command = [sys.executable, "-m", "benchmarks.overhead", f"--device={self._device}"]
        return self._run(shlex.join([*command, "--against=engine", f"--rounds={rounds}"]))

    def _streams(self) -> Facts:
        """One row of ``benchmarks.streams``, which recognises on the CPU."""
        url = self._running().replace("http", "ws", 1)
        command = [sys.executable, "-m", "benchmarks.streams", f"--url={url}", "--seconds=5"]
        return self._run(shlex.join([*command, f"--first={STREAMS}", f"--most={STREAMS}"]))

    def _speed(self) -> Facts:
        """The rows of ``benchmarks.whisper``; on the CPU few of them, of the demo model."""
        command = [sys.executable, "-m", "benchmarks.whisper", f"--device={self._device}"]
        command += [f"--json={SPEED.absolute()}", f"--models={self._folder}", "--seconds=2"]
        if self._device == "cpu":
            command += ["--size=demo", "--seconds=0", "--batches", "1", "2", "--callers", "1", "2"]
        facts = _output(command, cwd=REPOSITORY_ROOT)
        ratios = json.loads(SPEED.read_text("utf-8"))["ratios"]
        shown = (f"{name} {value:.2f}" for name, value in ratios.items())
        return {"summary": "; ".join(shown), **facts}

    def _running(self) -> str:
        if self._url is None:
            raise Skipped("the graph is not up")
        return self._url


@contextmanager
def filled_gpu() -> Iterator[None]:
    """A GPU without free memory."""
    command = [sys.executable, "-m", "benchmarks.fill_gpu"]
    with subprocess.Popen(
        command, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "full\n":
            raise Unmet("the memory of the GPU could not be filled")
        yield


def recovered_after_s(url: str) -> float:
    """Seconds until every recogniser answers again. Raises Unmet after RECOVERY_S."""
    started = time.monotonic()
    while time.monotonic() < started + RECOVERY_S:
        responses = [_send(url, AUDIO / DIALOGUES[0], model) for model in RECOGNISERS]
        if all(response.status_code == 200 for response in responses):
            return time.monotonic() - started
        time.sleep(1)
    raise Unmet(f"no answer within {RECOVERY_S:.0f} s after the memory was freed")


def _is_out_of_memory(response: httpx.Response) -> bool:
    retry = response.headers.get("Retry-After", "").isdigit()
    return response.status_code == 503 and retry and "out_of_memory" in response.text


def _output(command: list[str], **options: Any) -> Facts:
    """What a command prints; raises Unmet where it fails."""
    run = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    facts = {"output": run.stdout, "errors": run.stderr[-2000:]}
    if run.returncode:
        raise Unmet(f"exit status {run.returncode}", facts)
    return facts


def _whisper_texts(device: Device, compute_type: str) -> Facts:
    command = [sys.executable, "-m", "benchmarks.whisper_text", device, compute_type]
    run = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        raise Unmet(f"exit status {run.returncode}: {lines[-1] if lines else ''}")
    facts: Facts = json.loads(run.stdout)
    if "unsupported" in facts:
        raise Skipped(facts["unsupported"])
    return facts


def _answers(url: str) -> Answers:
    found = {}
    for model in RECOGNISERS:
        for name in DIALOGUES:
            response = _send(url, AUDIO / name, model)
            if response.is_error:
                raise Unmet(f"{model}, {name}: HTTP {response.status_code}: {response.text[:300]}")
            found[f"{model}, {name}"] = comparable(response.json()["result"])
    return found


def _send(url: str, path: Path, model: str) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/process",
        files={"audio": (path.name, path.read_bytes())},
        data={"request_json": json.dumps(REQUEST), "model": model},
        timeout=60,
    )


def _http(url: str) -> str:
    return url.replace("ws", "http", 1)
