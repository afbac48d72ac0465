"""The steps of the check of a GPU, against services and programs that play the parts."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import gpu_steps
from benchmarks.gpu_steps import GpuCheck, compared
from benchmarks.step_runner import Facts, Skipped, Unmet
from graphs.validate import problems

TURNS = [[0.0, 2.5, "SPEAKER_00"], [2.6, 4.0, "SPEAKER_01"]]
ANSWER = {"text": ["one two"], "turns": TURNS, "emotions": [{"sad": 0.9, "angry": 0.1}]}


def changed(**parts: Any) -> dict[str, Any]:
    return {"whisper": ANSWER | parts}


def test_an_answer_may_differ_by_a_frame_and_a_rounding() -> None:
    turns = [[0.02, 2.48, "SPEAKER_00"], [2.6, 4.0, "SPEAKER_01"]]
    compared(changed(), changed(turns=turns, emotions=[{"sad": 0.88, "angry": 0.12}]))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("text", ["one too"]),
        ("text", []),
        ("turns", [[0.0, 2.5, "SPEAKER_01"], TURNS[1]]),
        ("turns", [[0.0, 2.7, "SPEAKER_00"], TURNS[1]]),
        ("emotions", [{"sad": 0.1, "angry": 0.9}]),
        ("emotions", [None]),
    ],
)
def test_another_text_speaker_time_or_emotion_fails(part: str, value: Any) -> None:
    with pytest.raises(Unmet, match=f"whisper: {part}"):
        compared(changed(), changed(**{part: value}))


def result(text: str) -> dict[str, Any]:
    """The result block of ``/v1/process``."""
    return {
        "tra": {"segments": [{"text": f" {text}"}]},
        "dia": {"turns": [{"start": 0.0, "end": 1.0, "speaker": "SPEAKER_00"}]},
        "emo": {"segments": [{"emotional": {"sad": 1.0}}]},
    }


class Played:
    """A check whose graph, programs and GPU are played; ``answers`` are those to requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, device: str) -> None:
        self.text = "one"
        self.status = 200
        self.code = "out_of_memory"
        self.rows: list[dict[str, Any]] = []
        self.whisper: dict[tuple[str, str], Facts] = {}
        self.configs: list[dict[str, Any]] = []
        self.check = GpuCheck(device, folder, ["true"])  # type: ignore[arg-type]

        def post(url: str, **request: Any) -> httpx.Response:
            if self.status != 200:
                body = {"code": self.code}
                return httpx.Response(self.status, headers={"Retry-After": "2"}, json=body)
            return httpx.Response(200, json={"result": result(self.text)})

        @contextmanager
        def graph(config: dict[str, Any], folder: Path, haproxy: bool) -> Iterator[Any]:
            self.configs.append(config)
            yield "ws://127.0.0.1:1", 1

        monkeypatch.setattr(gpu_steps.httpx, "post", post)
        monkeypatch.setattr(
            gpu_steps.httpx, "get", lambda *_, **__: httpx.Response(200, json=self.rows)
        )
        monkeypatch.setattr(gpu_steps, "running_graph", graph)
        monkeypatch.setattr(gpu_steps, "_whisper_texts", lambda *of: self.whisper[of])

    def run(self, *names: str) -> Facts:
        """Carry out steps by name; the facts of the last."""
        steps = {step.name: step for step in self.check.steps()}
        for name in names:
            facts = steps[name].run()
        return facts


@pytest.fixture(params=["cuda"])
def played(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Played:
    return Played(monkeypatch, tmp_path, request.param)


def test_the_graph_on_a_gpu_is_valid_and_gives_each_deployment_of_models_a_share(
    played: Played, tmp_path: Path
) -> None:
    played.run("graph on the CPU", "graph")
    cpu, gpu = (config["applications"][0]["args"] for config in played.configs)
    assert sum(gpu_steps.SHARES.values()) <= 1
    for name, share in gpu_steps.SHARES.items():
        assert gpu[name]["resources"]["num_gpus"] == share
        assert cpu[name]["device"] == "cpu"
    for number, config in enumerate(played.configs):
        path = tmp_path / f"{number}.json"  # JSON is YAML
        path.write_text(json.dumps(config), encoding="utf-8")
        assert problems(path) == []


def test_answers_that_differ_from_those_on_the_cpu_fail(played: Played) -> None:
    played.run("graph on the CPU", "graph", "answers")
    played.text = "two"
    with pytest.raises(Unmet, match=r"demo-whisper, dialogue-ru\.flac: text"):
        played.run("answers")


def test_nothing_is_compared_without_a_graph_or_answers_of_the_cpu(played: Played) -> None:
    with pytest.raises(Skipped, match="CPU"):
        played.run("answers")
    played.run("graph on the CPU")
    with pytest.raises(Skipped, match="not up"):
        played.run("answers")


def row(model: str, asked: str, device: str, fallback: str | None = None) -> dict[str, Any]:
    return {"model_name": model, "asked": asked, "device": device, "fallback": fallback}


def test_a_model_that_runs_on_the_cpu_instead_of_the_gpu_fails_with_the_reason(
    played: Played,
) -> None:
    played.rows = [row("a", "auto", "cuda"), row("b", "cpu", "cpu")]
    assert played.run("graph", "devices")["summary"] == "a cuda"
    played.rows.append(row("c", "auto", "cpu", "libcublas.so.12 is missing"))
    with pytest.raises(Unmet, match="a cuda; c cpu libcublas"):
        played.run("devices")


def test_text_that_a_compute_type_loses_is_counted(played: Played) -> None:
    played.whisper["cpu", "float32"] = {"used": "float32", "texts": {"ru": ["one", "two"]}}
    played.whisper["cuda", "float16"] = {"used": "float16", "texts": {"ru": ["one"]}}
    with pytest.raises(Unmet, match="used float16; ru: 1 of 2"):
        played.run("whisper on the CPU, float32", "whisper, float16")
    played.whisper["cuda", "float16"] = played.whisper["cpu", "float32"]
    played.run("whisper, float16")


def test_weights_of_8_bits_are_compared_with_those_of_the_cpu(played: Played) -> None:
    played.whisper["cpu", "float32"] = {"used": "float32", "texts": {"ru": ["one", "two"]}}
    played.whisper["cpu", "int8_float32"] = {"used": "int8_float32", "texts": {"ru": ["one to"]}}
    played.whisper["cuda", "int8_float16"] = {"used": "int8_float16", "texts": {"ru": ["one to"]}}
    references = ["whisper on the CPU, float32", "whisper on the CPU, int8_float32"]
    summary = played.run(*references, "whisper, int8_float16")["summary"]
    assert summary == "used int8_float16, text as on the CPU in int8_float32"


@pytest.fixture
def full(played: Played, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the status of requests while the memory of the GPU is full."""

    def answers(status: int) -> None:
        @contextmanager
        def filled() -> Iterator[None]:
            played.status = status
            yield
            played.status = 200

        monkeypatch.setattr(gpu_steps, "filled_gpu", filled)

    return answers


def test_an_out_of_memory_is_survived_if_it_is_503_and_an_answer_follows(
    played: Played, full: Callable[[int], None]
) -> None:
    full(503)
    summary = played.run("graph", "out of memory")["summary"]
    assert summary.startswith("demo-whisper 503, demo-nemo 503; answered ")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (500, "out_of_memory", "neither"),
        (503, "overloaded", "neither"),
        (200, "", "nothing needed more"),
    ],
)
def test_another_answer_without_memory_fails(
    status: int, code: str, reason: str, played: Played, full: Callable[[int], None]
) -> None:
    played.code = code
    full(status)
    with pytest.raises(Unmet, match=reason):
        played.run("graph", "out of memory")


def test_a_service_that_does_not_answer_after_an_out_of_memory_fails(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_steps.time, "monotonic", itertools.count(step=30).__next__)
    monkeypatch.setattr(gpu_steps.time, "sleep", lambda _: None)
    played.status = 503
    with pytest.raises(Unmet, match="no answer within 60 s"):
        gpu_steps.recovered_after_s("http://127.0.0.1:1")


@pytest.mark.parametrize("played", ["cpu"], indirect=True)
def test_no_memory_is_filled_on_the_cpu(played: Played) -> None:
    with pytest.raises(Skipped, match="no GPU"):
        played.run("graph", "out of memory")


def test_a_command_runs_beside_the_graph_and_its_last_line_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    played = Played(monkeypatch, tmp_path, "cuda")
    command = "sh -c 'echo first; echo at $SPEECHGRAPH_URL; exit $STATUS'"
    played.check = GpuCheck("cuda", tmp_path, [command])
    monkeypatch.setenv("STATUS", "0")
    assert played.run("graph", command)["summary"] == "at http://127.0.0.1:1"
    monkeypatch.setenv("STATUS", "3")
    with pytest.raises(Unmet, match="exit status 3"):
        played.run(command)


@pytest.mark.parametrize("played", ["cuda", "cpu"], indirect=True)
def test_the_overhead_is_that_against_engines_on_the_same_device(
    played: Played, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "a row\nthe last row\n", "")

    monkeypatch.setattr(gpu_steps.subprocess, "run", run)
    facts = played.run("graph", "overhead of the service")
    assert facts["summary"] == "the last row"
    (command,) = commands
    assert f"--device={request.node.callspec.params['played']}" in command
    assert "--against=engine" in command


def test_the_delays_of_live_streams_are_measured_on_the_running_graph(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "a row\n32 streams\n", "")

    monkeypatch.setattr(gpu_steps.subprocess, "run", run)
    assert played.run("graph", "live streams")["summary"] == "32 streams"
    (command,) = commands
    assert "--url=ws://127.0.0.1:1" in command


@pytest.mark.parametrize(
    ("played", "size"), [("cuda", None), ("cpu", "--size=demo")], indirect=["played"]
)
def test_the_speed_of_whisper_is_that_of_turbo_on_a_gpu_and_of_the_demo_on_a_cpu(
    played: Played, size: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "speed.json"
    commands: list[list[str]] = []
    status = 0

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        file.write_text(json.dumps({"ratios": {"service ÷ library": 2.512}}), "utf-8")
        return subprocess.CompletedProcess(command, status, "rows", "wrong")

    monkeypatch.setattr(gpu_steps, "SPEED", file)
    monkeypatch.setattr(gpu_steps.subprocess, "run", run)
    facts = played.run("speed of Whisper")
    assert facts == {"summary": "service ÷ library 2.51", "output": "rows", "errors": "wrong"}
    (command,) = commands
    assert f"--device={'cpu' if size else 'cuda'}" in command
    assert [part for part in command if part.startswith("--size")] == ([size] if size else [])
    status = 1
    with pytest.raises(Unmet, match="exit status 1"):
        played.run("speed of Whisper")


def test_what_the_check_has_started_is_ended(repository: Path) -> None:
    script = (
        "import subprocess; from pathlib import Path; from benchmarks.gpu_steps import GpuCheck; "
        "process = subprocess.Popen(['sleep', '60']); GpuCheck('cpu', Path(), []).end(); "
        "print(process.wait(20))"
    )  # in a process of its own, as it ends all children
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=True
    )
    assert run.stdout == f"{-signal.SIGKILL}\n"
