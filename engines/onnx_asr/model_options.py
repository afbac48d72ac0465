"""The ``options`` of a catalogue entry of this family."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.catalogue import ModelEntry
from speech.errors import ModelUnavailable

_OF_SHERPA_ONNX = {"feature_dim", "decoding_method"}


class OnnxAsrOptions(BaseModel):
    """``options`` of a catalogue entry of this family."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_utterance_s: float = Field(15.0, ge=2, le=60, description="Longest utterance, seconds.")
    feature_dim: int = Field(80, ge=1, description="Mel bands; GigaAM models define their own.")
    decoding_method: Literal["greedy_search", "modified_beam_search"] = Field(
        "greedy_search", description="Beam search is for transducers, and hotwords need it."
    )

    @classmethod
    def of(cls, entry: ModelEntry) -> "OnnxAsrOptions":
        """The options of a catalogue entry; raises ModelUnavailable."""
        try:
            options = cls.model_validate(entry.options)
        except ValidationError as error:
            raise ModelUnavailable(f"options of model '{entry.id}': {error}") from error
        foreign = sorted(_OF_SHERPA_ONNX & options.model_fields_set)
        if foreign and entry.backend == "onnx_asr":
            raise ModelUnavailable(
                f"options of model '{entry.id}': {', '.join(foreign)}: only for formats of "
                f"sherpa-onnx, and {entry.format} is none"
            )
        return options
