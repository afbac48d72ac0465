"""The old servers' REST on the running graph: tempo change, options and errors of real models."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.legacy_environment import ENV_FILE

Application = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="module")
def dialogue(demo_audio: Path) -> bytes:
    return (demo_audio / "dialogue-en.flac").read_bytes()


@pytest.fixture(scope="module")
def quicker(
    application: Application, demo_args: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A graph of one model in ONNX whose old .env file has AUDIO_SPEEDUP=1.25; its base URL."""
    file = tmp_path_factory.mktemp("old") / ".env"
    file.write_text("AUDIO_SPEEDUP=1.25\n", encoding="utf-8")
    args = {
        "offline": True,
        "ingress": {**demo_args["ingress"], "default_transcriber": "demo-vosk", "sessions": {}},
        "decoder": demo_args["decoder"],
        "onnx_asr": {**demo_args["onnx_asr"], "preload": None},
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(ENV_FILE, str(file))
        with application("quicker", args) as url:
            yield url


def transcribe(url: str, audio: bytes, name: str = "a.flac", **options: Any) -> httpx.Response:
    return httpx.post(
        f"{url}/transcribe", files={"audio_file": (name, audio)}, data=options, timeout=240
    )


def words(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [word for segment in answer.json()["segments"] for word in segment["words"]]


def test_audio_speedup_gives_the_times_of_the_file_as_it_is(quicker: str, dialogue: bytes) -> None:
    plain = words(transcribe(quicker, dialogue, word_timestamps=True, speedup=1))
    sped_up = words(transcribe(quicker, dialogue, word_timestamps=True))
    texts = [[word["word"] for word in words] for words in (plain, sped_up)]
    matcher = SequenceMatcher(None, *texts, autojunk=False)
    pairs = [
        (plain[block.a + i], sped_up[block.b + i])
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]
    assert len(pairs) > 0.8 * len(plain), "speech is still understood"
    assert texts[0] != texts[1], "the recogniser gets other audio"
    for one, other in pairs:
        assert other["start"] == pytest.approx(one["start"], abs=0.1)


@pytest.mark.parametrize("speedup", [1, 1.25])
def test_clips_are_seconds_of_the_file_at_any_speed(
    demo: str, dialogue: bytes, speedup: float
) -> None:
    answer = transcribe(demo, dialogue, clip_timestamps="5,12", speedup=speedup)
    segments = answer.json()["segments"]
    assert segments
    assert all(4.9 <= s["start"] <= s["end"] <= 12.1 for s in segments)


def test_the_answer_is_whispers_with_words_on_request(demo: str, dialogue: bytes) -> None:
    body = transcribe(demo, dialogue, word_timestamps=True, language="en").json()
    assert body["language"] == "en"
    for number, segment in enumerate(body["segments"]):
        assert segment["id"] == number
        assert segment["tokens"]
        assert segment["avg_logprob"] < 0
        assert "".join(word["word"] for word in segment["words"]).strip()


def test_the_three_answers_have_the_same_text(demo: str, dialogue: bytes) -> None:
    text = transcribe(demo, dialogue, format="text")
    assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
    for name in ("simple", "json"):
        assert transcribe(demo, dialogue, format=name).json()["text"] == text.text != ""


def test_uploads_of_one_name_at_once_are_answered_with_their_own_words(
    demo: str, demo_audio: Path
) -> None:
    files = [demo_audio / name for name in ("dialogue-en.flac", "dialogue-ru.flac")] * 2
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda f: transcribe(demo, f.read_bytes(), "../../x"), files))
    assert [answer.json()["language"] for answer in answers] == ["en", "ru"] * 2


def test_what_the_original_called_its_own_error_is_the_clients(demo: str, dialogue: bytes) -> None:
    undecodable = transcribe(demo, b"not audio at all")
    assert undecodable.status_code == 415
    unknown = transcribe(demo, dialogue, language="de")
    assert unknown.status_code == 422
    for answer in (undecodable, unknown):
        assert answer.json()["detail"].startswith("Ошибка транскрибации: ")


def test_health_names_the_model_that_is_loaded(demo: str) -> None:
    body = httpx.get(f"{demo}/health", timeout=30).json()
    assert (body["status"], body["model_loaded"]) == ("healthy", True)
    assert body["model_name"] == "demo-whisper"


@pytest.mark.parametrize("name", ["dialogue-ru.flac", "dialogue-en.flac"])
def test_the_whisper_web_service_answers_flat(demo: str, demo_audio: Path, name: str) -> None:
    language = name.removesuffix(".flac")[-2:]
    answer = httpx.post(
        f"{demo}/api/transcribe",
        files={"file": (name, (demo_audio / name).read_bytes())},
        data={"model": "base", "language": language},
        timeout=240,
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"text", "language", "segments", "processing_time"}
    assert body["language"] == language
    assert len(body["text"].split()) > 50
    assert body["processing_time"] > 0


def test_the_whisper_web_service_leaves_out_what_is_empty(demo: str, demo_audio: Path) -> None:
    silence = (demo_audio / "silence.flac").read_bytes()
    answer = httpx.post(f"{demo}/api/transcribe", files={"file": ("s", silence)}, timeout=240)
    assert set(answer.json()) == {"language", "processing_time"}


def test_the_whisper_web_service_lists_its_models(demo: str) -> None:
    body = httpx.get(f"{demo}/api/models", timeout=30).json()
    assert set(body["available_models"]) >= {"tiny", "base", "small", "medium", "large"}
    assert "base" in body["loaded_models"]
