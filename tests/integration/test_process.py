"""`POST /v1/process` on the running graph: the promises of the API page, with real models."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest

from configs.settings import SpeechArgs
from speech.audio import SAMPLE_RATE
from speech.media.decoding import decode
from tests.unit.sound_files import wav

Process = Callable[..., httpx.Response]

LABELS = {"angry", "sad", "neutral", "positive"}


def result(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["status"] == "completed"
    assert body["job_id"] is None
    assert body["error"] is None
    block: dict[str, Any] = body["result"]
    return block


@pytest.fixture(scope="module")
def dialogue(demo_audio: Path) -> Path:
    return demo_audio / "dialogue-ru.flac"


def test_a_request_with_empty_settings_transcribes(
    demo: str, process: Process, dialogue: Path
) -> None:
    answer = result(process(demo, dialogue, {}))
    assert answer["dia"] is None
    assert answer["emo"] is None
    chunks = answer["tra"]["chunks"]
    assert all(chunk["channelTag"] == "1" for chunk in chunks)
    words = [w for chunk in chunks for a in chunk["alternatives"] for w in a["words"]]
    assert all(0 <= w["start"] <= w["end"] <= answer["duration"] for w in words)
    assert all(0 <= w["confidence"] <= 1 for w in words)
    assert "".join(w["word"] for w in words).split() == answer["tra"]["text"].split()


@pytest.mark.parametrize("name", ["dialogue-ru.flac", "dialogue-en.flac"])
def test_a_dialogue_is_transcribed_split_by_speaker_and_labelled_by_emotion(
    demo: str, process: Process, demo_audio: Path, name: str
) -> None:
    settings = {
        "tasks": ["transcribe", "diarization", "emotion"],
        "emo": {"analysis_level": "sentence"},
    }
    answer = result(process(demo, demo_audio / name, settings))
    assert answer["tra"]["language"] == name.removesuffix(".flac")[-2:]
    assert len({s["speaker"] for s in answer["tra"]["segments"]}) == 2
    assert {t["speaker"] for t in answer["dia"]["turns"]} == {"SPEAKER_00", "SPEAKER_01"}
    for span in answer["emo"]["segments"]:
        assert set(span["emotional"]) == LABELS
        assert sum(span["emotional"].values()) == pytest.approx(1, abs=1e-3)
    assert all(set(s["emotion"]) == LABELS for s in answer["tra"]["segments"])
    assert set(answer["stage_seconds"]) == {
        "decode", "transcribe", "diarization", "emotion", "merge",
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"tasks": ["transcribe", "diarization"]},
        {"tasks": ["emotion"], "emo": {"analysis_level": "sentence"}},
        {"tasks": ["emotion"]},
    ],
    ids=["diarization without dia", "emotion alone by sentence", "emotion alone"],
)
def test_requests_that_the_original_refused_or_broke_on_are_answered(
    demo: str, process: Process, dialogue: Path, settings: dict[str, Any]
) -> None:
    answer = result(process(demo, dialogue, settings))
    for task, block in (("transcribe", "tra"), ("diarization", "dia"), ("emotion", "emo")):
        assert (answer[block] is not None) == (task in settings["tasks"])


@pytest.mark.parametrize("level", ["word", "sentence", "speaker", "file"])
@pytest.mark.parametrize(
    "tasks",
    [
        ["emotion"],
        ["transcribe", "emotion"],
        ["diarization", "emotion"],
        ["transcribe", "diarization", "emotion"],
    ],
    ids="+".join,
)
def test_emotion_levels_use_what_the_other_tasks_give(
    demo: str, process: Process, dialogue: Path, tasks: list[str], level: str
) -> None:
    answer = result(process(demo, dialogue, {"tasks": tasks, "emo": {"analysis_level": level}}))
    spans = answer["emo"]["segments"]
    whole_file = [(s["start"], s["end"]) for s in spans] == [(0.0, answer["duration"])]
    words_known = "transcribe" in tasks or (tasks == ["emotion"] and level in ("word", "sentence"))
    if level == "speaker" and "diarization" in tasks:
        assert [s["speaker"] for s in spans] == [t["speaker"] for t in answer["dia"]["turns"]]
    elif level == "file" or not words_known:
        assert whole_file
    else:
        assert len(spans) > 1
        assert all(s["speaker"] is None for s in spans)


def test_text_format_answers_only_what_was_asked(
    demo: str, process: Process, dialogue: Path
) -> None:
    answer = result(process(demo, dialogue, {"tasks": ["transcribe"]}, format_output="text"))
    assert set(answer) == {"tra"}
    assert answer["tra"]["start"] == 0.0
    assert answer["tra"]["end"] > 20
    assert answer["tra"]["text"] == answer["tra"]["text"].strip() != ""


@pytest.mark.parametrize(
    "model", ["demo-whisper", "demo-vosk", "demo-gigaam", "demo-vosk-streaming"]
)
def test_the_recogniser_is_chosen_by_its_catalogue_id(
    demo: str, process: Process, dialogue: Path, model: str
) -> None:
    answer = result(process(demo, dialogue, {"tra": {"model": model}}))
    assert answer["models"] == {"transcribe": model}
    assert len(answer["tra"]["text"].split()) > 20


def test_a_wav_of_plain_samples_has_the_words_of_the_compressed_file(
    demo: str, process: Process, dialogue: Path
) -> None:
    """It is read in the ingress, the other one in the decoder."""
    data = dialogue.read_bytes()
    audio = decode(data, keep_channels=False, max_seconds=60, max_channels=1)
    samples = np.round(audio.mono * 32768).astype(np.int16)
    settings = {"tra": {"model": "demo-vosk"}}
    plain, compressed = (
        result(process(demo, file, settings)) for file in (wav(samples, SAMPLE_RATE), data)
    )
    for answer in (plain, compressed):
        del answer["stage_seconds"]
    assert plain == compressed


def test_a_stereo_call_gives_each_channel_its_own_turns_and_tag(
    demo: str, process: Process, demo_audio: Path
) -> None:
    call = next(demo_audio.glob("call-stereo.*[!n]"))
    settings = {"tasks": ["transcribe", "diarization"], "dia": {"stereo_mode": True}}
    answer = result(process(demo, call, settings))
    turns = answer["dia"]["turns"]
    assert {t["speaker"] for t in turns} == {"L0", "R0"}
    assert len(turns) > 2, "turns follow the activity of each channel"
    speakers = {s["channelTag"]: s["speaker"] for s in answer["tra"]["segments"]}
    assert speakers == {"1": "L0", "2": "R0"}


def test_stereo_mode_on_mono_audio_answers_with_a_warning(
    demo: str, process: Process, dialogue: Path
) -> None:
    settings = {"tasks": ["diarization"], "dia": {"stereo_mode": True}}
    answer = result(process(demo, dialogue, settings))
    assert any("stereo_mode" in warning for warning in answer["warnings"])
    assert answer["dia"]["turns"][0]["speaker"] == "SPEAKER_00"


@pytest.mark.parametrize("name", ["silence.flac", "noise.flac"])
@pytest.mark.parametrize("model", ["demo-whisper", "demo-vosk", "demo-gigaam"])
def test_silence_and_noise_give_an_empty_transcript(
    demo: str, process: Process, demo_audio: Path, model: str, name: str
) -> None:
    answer = result(process(demo, demo_audio / name, {"tra": {"model": model}}))
    assert answer["tra"]["text"] == ""


def test_silence_has_no_speakers_and_one_emotion_of_the_file(
    demo: str, process: Process, demo_audio: Path
) -> None:
    settings = {"tasks": ["diarization", "emotion"], "emo": {"analysis_level": "file"}}
    answer = result(process(demo, demo_audio / "silence.flac", settings))
    assert answer["dia"]["turns"] == []
    assert len(answer["emo"]["segments"]) == 1


@pytest.mark.parametrize("vad_filter", [False, True])
def test_ten_minutes_are_recognised_to_their_end(
    demo: str, process: Process, demo_audio: Path, vad_filter: bool
) -> None:
    answer = result(
        process(demo, demo_audio / "meeting-10min.opus", {"tra": {"vad_filter": vad_filter}})
    )
    assert answer["duration"] == pytest.approx(600, abs=15)
    assert answer["tra"]["segments"][-1]["end"] > answer["duration"] - 30


def test_many_requests_at_once_are_all_answered_with_their_own_words(
    demo: str, process: Process, demo_audio: Path
) -> None:
    names = ["dialogue-ru.flac", "dialogue-en.flac"] * 4
    settings = {"tra": {"model": "demo-vosk"}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: process(demo, demo_audio / n, settings), names))
    texts = {result(answer)["tra"]["text"] for answer in answers}
    assert len(texts) == 2


def test_the_service_lists_the_loaded_models(demo: str) -> None:
    stats = httpx.get(f"{demo}/cache/stats", timeout=30).json()
    assert {"demo-whisper", "demo-vosk", "demo-gigaam-emo", "demo-pyannote"} <= {
        entry["model_name"] for entry in stats
    }
    models = httpx.get(f"{demo}/v1/models", timeout=30).json()["data"]
    (whisper,) = [m for m in models if m["id"] == "demo-whisper"]
    assert whisper["devices"] == [{"asked": "cpu", "device": "cpu", "compute_type": "int8_float32"}]


def test_ready_names_every_deployment(demo: str) -> None:
    body = httpx.get(f"{demo}/ready", timeout=30).json()
    assert body["devices"]["demo-whisper"] == [
        {"asked": "cpu", "device": "cpu", "compute_type": "int8_float32"}
    ]
    assert body["deployments"] == dict.fromkeys(
        ["Ingress", "Decoder", "Whisper", "OnnxAsr", "Emotion", "Diarization", "JobRunner"], True
    )


@contextmanager
def trickling(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Clients that begin an upload and then send a byte now and then."""
    address = httpx.URL(url)
    begin = (
        f"POST {address.path}/v1/process HTTP/1.1\r\nHost: speech\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    ended = Event()

    def trickle(sockets: list[socket.socket]) -> None:
        while not ended.wait(0.3):
            for client in sockets:
                with suppress(OSError):
                    client.sendall(b"C")

    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        place = (address.host, address.port or 80)
        sockets = [stack.enter_context(socket.create_connection(place)) for _ in range(count)]
        for client in sockets:
            client.settimeout(30)
            client.sendall(begin.encode())
        pool.submit(trickle, sockets)
        try:
            yield sockets
        finally:
            ended.set()


def test_slow_uploads_on_all_places_do_not_block_a_normal_client(
    demo: str, demo_args: dict[str, Any], process: Process, dialogue: Path
) -> None:
    places = SpeechArgs(**demo_args).ingress.max_concurrent_requests
    with trickling(demo, places) as slow:
        answer = process(demo, dialogue, {})
        for _ in range(20):
            if answer.status_code != 503:
                break
            time.sleep(float(answer.headers["Retry-After"]))
            answer = process(demo, dialogue, {})
        assert result(answer)["tra"]["text"]
        answered, _, _ = select.select(slow, [], [], 30)
        assert {client.recv(12) for client in answered} == {b"HTTP/1.1 408"}
