"""Utterances decoded by onnx-asr on ONNX Runtime: batched, on the CPU or a GPU.

CTC and transducer models give token times and log-probabilities; that of a CTC token is the sum
over the frames that it lasts. Attention decoders (NeMo Canary) give text alone.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_asr
import onnxruntime
from onnx_asr.adapters import RecognizeOptions, TimestampedResultsAsrAdapter
from onnx_asr.asr import TimestampedResult
from onnx_asr.utils import ModelFileNotFoundError

from configs.catalogue import ModelEntry
from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.device import Device
from engines.onnx_asr.hypothesis import Hypothesis
from engines.onnx_sessions import check_providers, providers, session_options
from speech.audio import Samples
from speech.errors import EngineFailed, ModelNotInstalled, ModelUnavailable
from speech.ports import TranscribeOptions


class BatchedBackend:
    """A recogniser of onnx-asr; its type is the format of the catalogue entry."""

    takes_hotwords = False

    def __init__(
        self, entry: ModelEntry, path: Path, *, device: Device, compute_type: str, threads: int
    ) -> None:
        """Load a model from its directory.

        ``compute_type`` "int8" prefers the quantised files, anything else full precision; a single
        variant is used whatever it is. Raises ModelNotInstalled, and ModelUnavailable, also where
        onnxruntime would take the CPU for a GPU that does not work.
        """
        self._takes_language = entry.needs_language
        self._model, self.compute_type = _load(entry, path, device, compute_type, threads)
        parts = vars(self._model.asr).values()
        sessions = [part for part in parts if isinstance(part, onnxruntime.InferenceSession)]
        check_providers(f"model '{entry.id}'", device, sessions)

    def decode(
        self, utterances: Sequence[Samples], options: TranscribeOptions, cancelled: CancelCheck
    ) -> list[Hypothesis]:
        """The hypothesis of each utterance, of one batch. Raises Cancelled, EngineFailed."""
        raise_if_cancelled(cancelled)
        asked: RecognizeOptions = {}
        if self._takes_language:
            target = "en" if options.task == "translate" else options.language
            asked = {"language": options.language, "target_language": target}
        results = self._model.recognize(list(utterances), **asked)
        return [_hypothesis(result) for result in results]


def _load(
    entry: ModelEntry, path: Path, device: Device, compute_type: str, threads: int
) -> tuple[TimestampedResultsAsrAdapter, str]:
    variants = {"float32": None, "int8": "int8"}
    missing = None
    for name in sorted(variants, key=lambda name: (name == "int8") != (compute_type == "int8")):
        try:
            model = onnx_asr.load_model(
                entry.format,
                path,
                quantization=variants[name],
                sess_options=session_options(threads),
                providers=providers(device),
            )
        except ModelFileNotFoundError as error:
            missing = missing or error
        except Exception as error:
            raise ModelUnavailable(
                f"model '{entry.id}' does not load", detail=f"{path}: {error}"
            ) from error
        else:
            return model.with_timestamps(), name
    raise ModelNotInstalled("a file of the model is missing", str(missing))


def _hypothesis(result: TimestampedResult) -> Hypothesis:
    log_probabilities = result.logprobs or []
    if not np.isfinite(log_probabilities).all():
        raise EngineFailed("the log-probabilities are not finite")
    return Hypothesis(result.tokens or [], result.timestamps or [], log_probabilities)
