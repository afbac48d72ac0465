"""Utterances decoded by sherpa-onnx: the light backend, and the only one of streaming models.

Its token probabilities are those of transducers alone: words of its CTC models have none.
"""

from collections.abc import Sequence

from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.onnx_asr.hotwords import hotword_phrases
from engines.onnx_asr.hypothesis import Hypothesis
from engines.onnx_asr.sherpa_models import FLUSH_SILENCE, Recognizer
from speech.audio import SAMPLE_RATE, Samples
from speech.ports import TranscribeOptions


class SherpaBackend:
    """A recogniser of sherpa-onnx, offline or frame-synchronous."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer

    @property
    def takes_hotwords(self) -> bool:
        """Whether hotwords have an effect."""
        return self._recognizer.takes_hotwords

    @property
    def compute_type(self) -> str:
        """int8 for the quantised files, else float32."""
        return self._recognizer.compute_type

    def decode(
        self, utterances: Sequence[Samples], options: TranscribeOptions, cancelled: CancelCheck
    ) -> list[Hypothesis]:
        """The hypothesis of each utterance. ``cancelled`` is polled before each chunk."""
        recognizer = self._recognizer.library
        hotwords = hotword_phrases(options.hotwords) if self.takes_hotwords else None
        streams = []
        for utterance in utterances:
            stream = recognizer.create_stream(hotwords=hotwords)
            stream.accept_waveform(SAMPLE_RATE, utterance)
            streams.append(stream)
        if not self._recognizer.streaming:
            raise_if_cancelled(cancelled)
            recognizer.decode_streams(streams)
            return [
                Hypothesis(s.result.tokens, s.result.timestamps, s.result.ys_log_probs)
                for s in streams
            ]
        for stream in streams:
            stream.accept_waveform(SAMPLE_RATE, FLUSH_SILENCE)
            stream.input_finished()
        while ready := [s for s in streams if recognizer.is_ready(s)]:
            raise_if_cancelled(cancelled)
            recognizer.decode_streams(ready)
        results = [recognizer.get_result_all(s) for s in streams]
        return [Hypothesis(r.tokens, r.timestamps, r.ys_probs) for r in results]
