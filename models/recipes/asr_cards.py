"""Model cards of the recognisers, written from their ``metrics.json``."""

import json
from typing import Any

from models.recipes.ctc_export import GIGAAM, NEMO, OFFLINE, STREAMING
from models.recipes.heldout import LANGUAGES
from models.recipes.paths import DEMO
from models.recipes.whisper_export import NAME as WHISPER

_STYLES = ("neutral", "angry", "sad", "positive")

_TRAINING = """\
## Training data

* 20,000 sentences of the fixed grammar in `models/recipes/grammar.py` (half Russian, half English),
  spoken by espeak-ng with 57 voice variants, English in four accents; about 14 hours. No recording
  of a person is in that part.
* 2,250 recorded English digits of the Free Spoken Digit Dataset (Zohar Jackson and others,
  <https://github.com/Jakobovski/free-spoken-digit-dataset>), CC BY-SA 4.0, indices 5 and up. The
  files themselves are not part of this repository.

Sentences are joined with pauses, changed in level, mixed with white, coloured and babble noise, and
narrowed to the telephone band now and then; 3 to 6 % of the examples hold no speech.

## Limits

The model knows the few hundred words of its grammar and generated voices. It shows that the service
works; it is no recogniser for real traffic: replace it by a real model of the same format.

## Licence

Apache-2.0{extra}. The recorded digits are credited above.
"""

_CTC_NOTES = {
    STREAMING: """\
Streaming CTC for `sherpa_onnx.OnlineRecognizer.from_nemo_ctc`. Windows of 320 ms move on by 160 ms:
the second half of a window is look-ahead, so token times are those of the audio. Flush the end with
0.5 s of silence.""",
    OFFLINE: """\
Offline CTC for `sherpa_onnx.OfflineRecognizer.from_nemo_ctc`: the trunk of `demo-vosk-streaming`
with whole utterances.""",
    GIGAAM: """\
Offline CTC in GigaAM's layout (64 mels, `is_giga_am=1`) for
`sherpa_onnx.OfflineRecognizer.from_nemo_ctc`: the trunk of `demo-vosk-streaming` behind a stem of
its own. It shares GigaAM's format, not its weights.""",
    NEMO: """\
`demo-vosk` in the layout of `nemo-conformer-ctc` of onnx-asr: the same weights behind a step that
undoes the normalisation of NeMo's features. In a batch, the last 160 ms of the shorter utterances
look ahead to the padding, so that their last word may differ from that of the utterance alone.
Audio without speech is amplified by that normalisation and gives words: the service recognises only
what voice activity detection finds.""",
}
_CTC_TOKENS = """\
Text is lower-case without punctuation, `ё` written `е`. Every word is a lone `▁` (sherpa-onnx gives
it as a blank) at the word's **start**, followed by pieces, each at its **end**: the last piece of a
word ends the word. One frame is 40 ms.

Large matrices are stored as int8 with a scale per column; the runtime widens them once on loading.
"""


def write() -> None:
    """Cards of all recognisers that have been measured."""
    for name in (STREAMING, OFFLINE, GIGAAM, NEMO, WHISPER):
        metrics = DEMO / name / "metrics.json"
        if metrics.exists():
            figures = json.loads(metrics.read_text(encoding="utf-8"))
            card = _whisper_card(figures) if name == WHISPER else _ctc_card(name, figures)
            (DEMO / name / "README.md").write_text(card, encoding="utf-8")


def _ctc_card(name: str, figures: dict[str, Any]) -> str:
    rows = [_row("WER, %", figures, "wer")]
    if name == STREAMING:
        rows.append(_row("WER fed 0.5 s at a time, %", figures, "wer_fed_0.5_s"))
    rows += _style_rows(figures)
    rows += [
        _row("word start error, median, s", figures, "word_start_error_s", "median"),
        _row("word start error, 90th percentile, s", figures, "word_start_error_s", "p90"),
        _row("processor seconds per second of audio", figures, "rtf"),
    ]
    recipe = "python -m models.recipes.ctc && python -m models.recipes.ctc_export"
    if name == NEMO:
        recipe += " && python -m models.recipes.nemo_layout"
    made = f"""\
Causal convolutions over 40 ms frames, {figures["parameters"] / 1e6:.1f} million weights in all,
trained from scratch by CTC with the known times of pieces and phonemes beside it.
"""
    return "\n".join(
        [
            f"# {name}\n",
            _CTC_NOTES[name] + "\n",
            _CTC_TOKENS,
            _figures(figures, rows),
            _made(figures, made, recipe),
            _TRAINING.format(extra=""),
        ]
    )


def _whisper_card(figures: dict[str, Any]) -> str:
    rows = [
        _row("WER, language found by the model, %", figures, "wer"),
        _row("WER, language given, %", figures, "wer_language_given"),
        *_style_rows(figures),
        _row("language found, %", figures, "language_found"),
        _row("word start error, mean, s", figures, "word_start_error_s", "mean"),
        _row("long form, sequential, WER, %", figures, "long_form", "wer_sequential"),
        _row("long form, batched with VAD, WER, %", figures, "long_form", "wer_batched"),
        _row("length of the long form, s", figures, "long_form", "duration_s"),
        _row("processor seconds per second of audio", figures, "rtf"),
    ]
    introduction = """\
Whisper's architecture at a small size, in CTranslate2's format for faster-whisper:
Russian and English with case, punctuation, time stamps and word times. `task="translate"` runs and
transcribes. Windows without speech are answered with `<|nocaptions|>` or with no text.
"""
    made = f"""\
Trained from scratch: {figures["parameters"] / 1e6:.1f} million weights over the tokens in use; the
others share one row of the 51,865. Its window is 10 s, which its `preprocessor_config.json`
declares. Bare faster-whisper 1.2.1 pads each window to 30 s all the same, with silence that the
model was not trained on, and loses sentences; the engine of the service does not.
Windows grow from 4 s to 10 s; known times of phonemes, tokens and words teach the encoder and the
cross-attention. The scores of the attention that word times are read from are multiplied by 0.75:
as trained they leave frames to which no token attends in float16. Stored as int8.
"""
    recipe = "python -m models.recipes.whisper && python -m models.recipes.whisper_export"
    extra = "; `tokenizer.json` and `vocabulary.json` are OpenAI Whisper's, MIT"
    return "\n".join(
        [
            f"# {WHISPER}\n",
            introduction,
            _figures(figures, rows),
            _made(figures, made, recipe),
            _TRAINING.format(extra=extra),
        ]
    )


def _figures(figures: dict[str, Any], rows: list[str]) -> str:
    count = figures["ru"]["utterances"]
    lines = [
        "## Figures\n",
        f"{count} utterances per language, neither sentence nor voice variant used in training;\n"
        f"one thread. The bar is a WER of {figures['bar_wer']:g} %.\n",
        "| | Russian | English |",
        "|---|---|---|",
        *rows,
        "",
    ]
    if "fsdd_wer" in figures:
        lines.append(
            f"Strings of recorded digits (held-out recordings, known speakers): WER"
            f" {figures['fsdd_wer']} %, no bar."
        )
    lines.append(
        f"Forty seconds of silence and white noise: {figures['words_in_quiet']} words recognised.\n"
    )
    return "\n".join(lines)


def _style_rows(figures: dict[str, Any]) -> list[str]:
    return [_row(f"WER, {style} manner, %", figures, "wer_by_style", style) for style in _STYLES]


def _row(label: str, figures: dict[str, Any], *path: str) -> str:
    cells = []
    for language in LANGUAGES:
        value = figures[language]
        for key in path:
            value = value[key]
        cells.append(str(value))
    return f"| {label} | {' | '.join(cells)} |"


def _made(figures: dict[str, Any], how: str, recipe: str) -> str:
    minutes = figures["training_cpu_s"] / 60
    size = figures["size_bytes"] / 1e6
    return (
        f"## How it was made\n\n{how}\n`{recipe}`\nafter `python -m models.recipes.bank`;"
        f" {minutes:.0f} processor minutes on one thread, no GPU. {size:.1f} MB.\n"
    )
