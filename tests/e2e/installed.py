"""Checks what an extra of the wheel promises, run in an environment with that extra alone:

    python -P installed.py EXTRA CHECKOUT [DATABASE]

The code is the installed one; the demo models and recordings are those of the checkout.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import configs
from configs.catalogue import Catalogue, ModelEntry
from speech.audio import Audio
from speech.media.decoding import decode


def recording(checkout: Path, name: str = "dialogue-en.flac") -> Audio:
    """A recording of the demo pack."""
    data = (checkout / "models/demo/audio" / name).read_bytes()
    return decode(data, keep_channels=False, max_seconds=600, max_channels=2)


def model(checkout: Path, name: str) -> tuple[ModelEntry, Path]:
    """A model of the demo pack: its entry in the installed catalogue, and its files."""
    entry = Catalogue.load().find(name)
    assert entry is not None
    return entry, checkout / "models/demo" / name


def core(checkout: Path) -> None:
    """The graph is built and uploads are decoded where no engine is installed."""
    from graphs.validate import problems

    assert recording(checkout).duration > 5
    for config in ("configs/demo.yaml", "configs/gpu.yaml", "serve_config.yaml"):
        assert problems(checkout / config) == []
    absent("faster_whisper", "sherpa_onnx", "onnxruntime", "torch")


def whisper(checkout: Path) -> None:
    """Whisper recognises speech without torch."""
    from engines.whisper.engine import WhisperEngine
    from speech.ports import TranscribeOptions

    _, path = model(checkout, "demo-whisper")
    engine = WhisperEngine(path, device="cpu", compute_type="auto", threads=1)
    assert engine.transcribe(recording(checkout).cut(0, 8), TranscribeOptions()).segments
    absent("sherpa_onnx", "torch")


def onnx_asr(checkout: Path) -> None:
    """The models in ONNX recognise files and streams without torch."""
    from engines.onnx_asr.offline import OnnxAsrEngine
    from engines.onnx_asr.streaming import Step, StreamingEngine
    from engines.vad.silero_vad import SileroVad
    from engines.vad.webrtc_vad import WebRtcVad
    from speech.ports import TranscribeOptions

    samples = recording(checkout).cut(0, 8)
    for name in ("demo-vosk", "demo-gigaam", "demo-nemo"):
        engine = OnnxAsrEngine(*model(checkout, name), device="cpu")
        assert engine.transcribe(samples, TranscribeOptions()).segments
    streaming = StreamingEngine(*model(checkout, "demo-vosk-streaming"), device="cpu")
    (words,) = streaming.step([Step(streaming.open(), samples, finish=True)])
    assert words
    assert SileroVad().speech(samples)
    assert WebRtcVad(2)
    absent("torch")


def emotion(checkout: Path) -> None:
    """Emotions are classified without torch."""
    from engines.emotion import EmotionEngine

    _, path = model(checkout, "demo-gigaam-emo")
    engine = EmotionEngine(path, device="cpu", threads=1)
    (probabilities,) = engine.classify([recording(checkout).cut(0, 4)])
    assert round(sum(probabilities.values()), 3) == 1
    absent("faster_whisper", "sherpa_onnx", "torch")


def diarization(checkout: Path) -> None:
    """The pyannote pipeline finds the two speakers of a dialogue."""
    diarize(checkout, "demo-pyannote")


def diarization_light(checkout: Path) -> None:
    """sherpa-onnx finds the two speakers of a dialogue without torch."""
    diarize(checkout, "demo-diarization-light")
    absent("torch")


def diarize(checkout: Path, name: str) -> None:
    from engines.diarization.backends import load_engine
    from speech.ports import DiarizeOptions

    entry, path = model(checkout, name)
    engine = load_engine(entry, path, device="cpu", threads=1)
    turns = engine.diarize(recording(checkout).mono, DiarizeOptions()).turns
    assert {turn.speaker for turn in turns} == {"SPEAKER_00", "SPEAKER_01"}


def postgres(checkout: Path) -> None:
    """The job store creates its tables in PostgreSQL."""
    from infra.job_store import SqlJobStore

    store = SqlJobStore(sys.argv[3])
    assert store.page("owner", 10, None) == []


def s3(checkout: Path) -> None:
    """The audio of a job goes to a bucket and comes back."""
    from infra.job_audio import JobAudio

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    audio = JobAudio("s3://bucket")
    audio.put("job", b"audio")
    assert audio.get("job") == b"audio"


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as one object needs."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.objects[self.path.split("?")[0]] = body
        self._answer(200)

    def do_GET(self) -> None:
        body = self.objects.get(self.path.split("?")[0])
        self._answer(404 if body is None else 200, body or b"")

    def do_HEAD(self) -> None:
        self._answer(200)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no access log."""


def absent(*packages: str) -> None:
    """Fail if one of these can be imported here."""
    found = [name for name in packages if importlib.util.find_spec(name)]
    assert not found, f"{found} should not be installed"


CHECKS: dict[str, Callable[[Path], None]] = {
    "": core,
    "whisper": whisper,
    "vosk": onnx_asr,
    "emotion": emotion,
    "diarization": diarization,
    "diarization-light": diarization_light,
    "postgres": postgres,
    "s3": s3,
}

if __name__ == "__main__":
    checkout = Path(sys.argv[2])
    assert checkout not in Path(configs.__file__).parents, "the checkout's code is used"
    CHECKS[sys.argv[1]](checkout)
