"""The curl commands of the old servers' documentation, run in a shell against the demo graph.

The simple ASR server's README puts ``-d`` and ``--form`` on one line, which curl refuses before it
sends anything. The nearest line that it accepts has the same JSON in a part of the form.
"""

import json
import re
import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.media.decoding import decode

pytestmark = pytest.mark.timeout(600)

LINE = """curl -X POST "http://localhost:9854/transcribe" \\
  -H "X-API-Key: your-api-key" \\
  -H "Content-Type: application/json" \\
  -d '{options}' \\
  --form "audio_file=@{audio}"
"""
OPTIONS: list[dict[str, Any]] = [
    {},
    {"language": "ru", "format": "simple", "word_timestamps": True, "temperature": 0.2},
    {"format": "text"},
    {
        "language": "en",
        "task": "translate",
        "temperature": 0.1,
        "beam_size": 5,
        "word_timestamps": True,
        "initial_prompt": "Technical talk",
        "format": "json",
    },
]
"""The options of the examples in that README."""


@pytest.fixture(scope="module")
def serving(serving: dict[str, str]) -> str:
    """The base URL of the demo graph."""
    return serving["service"]


@pytest.fixture(scope="module")
def folder(demo_audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with en.wav and ru.wav, a few seconds of speech each."""
    folder = tmp_path_factory.mktemp("audio")
    for language in ("en", "ru"):
        data = (demo_audio / f"dialogue-{language}.flac").read_bytes()
        audio = decode(data, keep_channels=False, max_seconds=600, max_channels=2)
        with wave.open(str(folder / f"{language}.wav"), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes((audio.cut(0, 12) * 32767).astype(np.int16).tobytes())
    return folder


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    silently = line.replace("curl ", "curl --silent --show-error --max-time 240 ")
    return subprocess.run(
        ["bash", "-c", silently], cwd=folder, capture_output=True, text=True, check=False
    )


def answer(line: str, serving: str, folder: Path) -> str:
    """The output of the command, sent to ``serving`` instead of the old server's port."""
    run = shell(re.sub(r"http://localhost:\d+", serving, line), folder)
    assert run.returncode == 0, run.stderr
    return run.stdout


def line_of(options: dict[str, Any]) -> str:
    audio = f"{options.get('language', 'en')}.wav"
    return LINE.format(options=json.dumps(options, indent=4), audio=audio)


def as_form(line: str) -> str:
    return line.replace("-d '", "--form 'params=")


@pytest.mark.parametrize("options", OPTIONS)
def test_curl_itself_refuses_data_beside_a_form(folder: Path, options: dict[str, Any]) -> None:
    assert shell(line_of(options), folder).returncode == 2


def test_the_simple_line_gets_whispers_dictionary(serving: str, folder: Path) -> None:
    body = json.loads(answer(as_form(line_of(OPTIONS[0])), serving, folder))
    assert set(body) == {"text", "segments", "language"}
    assert body["language"] == "en"
    assert body["segments"][0]["text"].strip() in body["text"]


def test_the_line_with_options_gets_the_text_in_json(serving: str, folder: Path) -> None:
    body = json.loads(answer(as_form(line_of(OPTIONS[1])), serving, folder))
    assert set(body) == {"text"}
    assert re.search("[а-я]{3}", body["text"])


def test_the_line_for_text_gets_text(serving: str, folder: Path) -> None:
    text = answer(as_form(line_of(OPTIONS[2])), serving, folder)
    assert re.fullmatch(r"[A-Z].{20,}", text)


def test_the_line_for_a_translation_gets_the_models_that_can(serving: str, folder: Path) -> None:
    body = json.loads(answer(as_form(line_of(OPTIONS[3])), serving, folder))
    assert "'demo-whisper' does not translate; these do: whisper-tiny, " in body["detail"]


def test_the_line_with_all_options_gets_words(serving: str, folder: Path) -> None:
    options = OPTIONS[3] | {"task": "transcribe"}
    body = json.loads(answer(as_form(line_of(options)), serving, folder))
    words = [word for segment in body["segments"] for word in segment["words"]]
    assert words
    assert all(0 <= word["start"] <= word["end"] <= 12 for word in words)


def test_options_may_be_query_parameters(serving: str, folder: Path) -> None:
    line = (
        'curl -X POST "http://localhost:9854/transcribe?format=text&speedup=1.25" '
        '-H "X-API-Key: your-api-key" -F "audio_file=@en.wav"'
    )
    assert answer(line, serving, folder).strip()


def test_the_health_line_needs_no_key(serving: str, folder: Path) -> None:
    body = json.loads(answer('curl "http://localhost:9854/health"', serving, folder))
    assert (body["status"], body["model_loaded"]) == ("healthy", True)
    assert body["model_name"] == "demo-whisper"


def test_the_health_check_of_a_container_succeeds(serving: str, folder: Path) -> None:
    answer("curl -f http://localhost:9854/health", serving, folder)


@pytest.mark.parametrize("more", ["", " -F model=base -F language=ru -F task=transcribe"])
def test_the_whisper_web_service_takes_a_form(serving: str, folder: Path, more: str) -> None:
    line = f"curl -X POST -F file=@ru.wav{more} http://localhost:8080/api/transcribe"
    body = json.loads(answer(line, serving, folder))
    assert set(body) == {"text", "language", "segments", "processing_time"}
    assert body["language"] == "ru"


def test_the_whisper_web_service_lists_its_models_and_reports_its_health(
    serving: str, folder: Path
) -> None:
    models = json.loads(answer("curl http://localhost:8080/api/models", serving, folder))
    assert "base" in models["available_models"]
    health = json.loads(answer("curl http://localhost:8080/api/health", serving, folder))
    assert health["status"] == "ok"


def test_a_page_of_another_origin_is_allowed_to_call(serving: str, folder: Path) -> None:
    line = (
        "curl -i -X OPTIONS -H 'Origin: http://elsewhere' "
        "-H 'Access-Control-Request-Method: POST' http://localhost:8080/api/transcribe"
    )
    head = answer(line, serving, folder)
    assert head.startswith("HTTP/1.1 204")
    assert "access-control-allow-origin: *" in head.lower()
