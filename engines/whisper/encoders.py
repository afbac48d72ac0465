"""Where the encoder of a Whisper model runs: in CTranslate2, or in torch."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ctranslate2
import numpy as np

from engines.whisper.log_mel import BlockwiseFeatures
from engines.whisper.model_bin import ModelBin, UnknownFormat, decoder_folder
from speech.errors import ModelNotInstalled

logger = logging.getLogger(f"speechgraph.{__name__}")

Asked = Literal["auto", "torch", "ctranslate2"]
Encoder = Literal["torch", "ctranslate2"]


class TorchEncodedWhisper:
    """A ``ctranslate2.models.Whisper`` whose encoder runs in torch; threads may share it.

    Every other call, and what describes the model, is that of ``decoder``, which has no encoder
    that runs: it takes the output of :meth:`encode`, never features.
    """

    def __init__(self, decoder: Any, encoder: Any) -> None:
        self._decoder = decoder
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        """``generate``, ``align``, ``detect_language``, ``compute_type``, ``device``, …"""
        return getattr(self._decoder, name)

    def encode(self, features: Any, to_cpu: bool = False) -> Any:
        """A ``StorageView`` on the encoder's own output, which lives as long as the view.

        ``features`` are those of a ``StorageView`` in the memory of the machine.
        """
        output = self._encoder.encode(np.asarray(features))
        if to_cpu or self.device == "cpu":
            output = output.cpu().numpy()
        return ctranslate2.StorageView.from_array(output)


class WhisperFiles:
    """The directory of a model, loaded in two parts where the encoder runs in torch.

    The weights of the encoder are then on the device once: CTranslate2 loads the decoder alone.
    """

    def __init__(self, path: Path, *, device: str, compute_type: str, encoder: Asked) -> None:
        """Choose where the encoder runs.

        "auto" is torch on "cuda", where torch has CUDA, unless the weights are asked for in 8 bits:
        torch would take twice the memory. Raises ModelNotInstalled if "torch" cannot be.
        """
        self._path = path
        self._device = device
        self.encoder: Encoder = "ctranslate2"
        if encoder == "ctranslate2" or (encoder == "auto" and device != "cuda"):
            return
        obstacle = _obstacle(path, device)
        if encoder == "auto" and compute_type.startswith("int8"):
            obstacle = f"compute_type is {compute_type}"
        if obstacle is None:
            self.encoder = "torch"
        elif encoder == "torch":
            message = f"the encoder of the Whisper model cannot run in torch: {obstacle}"
            raise ModelNotInstalled(message, str(path))
        logger.info(
            "the encoder of Whisper runs in %s%s",
            "torch" if obstacle is None else "CTranslate2",
            "" if obstacle is None else f": {obstacle}",
        )

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The directory that CTranslate2 loads."""
        if self.encoder == "ctranslate2":
            yield self._path
        else:
            with decoder_folder(self._path) as folder:
                yield folder

    def with_encoder(self, model: Any) -> Any:
        """The calls of ``ctranslate2.models.Whisper``, for the model loaded from that directory."""
        if self.encoder == "ctranslate2":
            return model
        from engines.whisper.torch_encoder import TorchEncoder

        weights = ModelBin(self._path)
        encoder = TorchEncoder(weights, device=self._device, compute_type=model.compute_type)
        return TorchEncodedWhisper(model, encoder)

    def features(self, options: dict[str, Any]) -> BlockwiseFeatures:
        """The extractor of log-mel features, on the GPU where the encoder runs in torch there."""
        if self.encoder == "torch" and self._device == "cuda":
            from engines.whisper.torch_features import TorchFeatures

            return TorchFeatures(self._device, **options)
        return BlockwiseFeatures(**options)


def _obstacle(path: Path, device: str) -> str | None:
    """Why the encoder cannot run in torch."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    try:
        import torch

        ModelBin(path)
    except (ImportError, OSError, UnknownFormat) as error:
        return str(error)
    if device == "cuda" and not torch.cuda.is_available():
        return "torch is installed without CUDA, or shows no GPU"
    return None
