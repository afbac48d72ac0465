"""What the demo Whisper recognises on one device in one compute type, as JSON, and what it ran on.

``python -m benchmarks.whisper_text DEVICE COMPUTE_TYPE``, in a process of its own: it may die.
"""

import json
import sys
from typing import Literal, cast

import ctranslate2

from clients.demo import AUDIO, DIALOGUES
from configs.catalogue import REPOSITORY_ROOT
from engines.device import Target, load
from engines.whisper.engine import WhisperEngine
from speech.media.decoding import decode
from speech.ports import TranscribeOptions

MODEL = "demo-whisper"
MODES = {
    "sequential": TranscribeOptions(),
    "batched": TranscribeOptions(vad_filter=True),
}


def texts(engine: WhisperEngine) -> dict[str, list[str]]:
    """The segments of each dialogue in each mode of the engine."""
    found = {}
    for name in DIALOGUES:
        data = (AUDIO / name).read_bytes()
        audio = decode(data, keep_channels=False, max_seconds=600, max_channels=2)
        for mode, options in MODES.items():
            segments = engine.transcribe(audio.mono, options).segments
            found[f"{name} {mode}"] = [segment.text.strip() for segment in segments]
    return found


def main() -> None:
    """Print the texts, and the device and the compute type that were used."""
    asked = cast(Literal["cpu", "cuda"], sys.argv[1])
    compute_type = sys.argv[2]
    supported = {"auto", *ctranslate2.get_supported_compute_types(asked)}
    if compute_type not in supported:
        print(json.dumps({"unsupported": f"{asked} has {', '.join(sorted(supported))}"}))
        return
    path = REPOSITORY_ROOT / "models" / "demo" / MODEL
    loaded = load(
        MODEL,
        Target(asked),
        "ctranslate2",
        lambda on: WhisperEngine(path, device=on, compute_type=compute_type, threads=2),
    )
    used = {"used": loaded.placement.compute_type, "encoder": loaded.engine.encoder}
    print(json.dumps({**used, "texts": texts(loaded.engine)}))


if __name__ == "__main__":
    main()
