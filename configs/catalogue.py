"""The model catalogue: the family, the format and the source of the files of every model id."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from configs.reasons import reasons

Family = Literal["whisper", "onnx_asr", "emotion", "diarization"]
OnnxAsrFormat = Literal[  # onnx_asr, on onnx-asr: its own names of types and of files
    "nemo-conformer-ctc",  # Parakeet CTC and others
    "nemo-conformer-rnnt",  # Parakeet RNN-T
    "nemo-conformer-tdt",  # Parakeet TDT
    "nemo-conformer-aed",  # Canary
    "gigaam-v2-ctc",
    "gigaam-v2-rnnt",
    "gigaam-v3-ctc",
    "gigaam-v3-rnnt",
    "gigaam-v3-e2e-ctc",
    "gigaam-v3-e2e-rnnt",
    "gigaam-multilingual-ctc",
    "kaldi-rnnt",  # Vosk from 0.52
    "t-one-ctc",
]
SherpaFormat = Literal[  # onnx_asr, on sherpa-onnx
    "transducer",  # encoder, decoder, joiner (offline)
    "streaming_transducer",  # the same, frame-synchronous
    "nemo_ctc",  # NeMo-style CTC, GigaAM CTC included (offline)
    "streaming_nemo_ctc",  # cache-aware NeMo CTC, frame-synchronous
    "nemo_transducer",  # GigaAM RNNT
]
OtherFormat = Literal[
    "ctranslate2",  # whisper: a CTranslate2 directory
    "gigaam_emo",  # emotion: features and feature_lengths in, probs out
    "pyannote",  # diarization: a pyannote.audio pipeline
    "sherpa_onnx",  # diarization: segmentation.onnx and embedding.onnx
]
Format = SherpaFormat | OnnxAsrFormat | OtherFormat

CATALOGUE_PATH = Path(__file__).with_name("models.yaml")
REPOSITORY_ROOT = CATALOGUE_PATH.parent.parent
"""The checkout; the directory of all packages where this one is installed."""


def resolve_path(path: str | Path) -> Path:
    """The absolute path of one in the configuration, where a leading ``~`` is the home directory.

    A relative one counts from the checkout, or from the working directory of the process where the
    package is installed from a wheel.
    """
    is_checkout = (REPOSITORY_ROOT / "pyproject.toml").is_file()
    return (REPOSITORY_ROOT if is_checkout else Path.cwd()) / Path(path).expanduser()


class Source(BaseModel):
    """Where the files of a model come from: a directory, or a repository on the hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        None, description="Directory; a relative one is resolved as in resolve_path."
    )
    repo: str | None = Field(None, description="Hub repository, owner/name.")
    revision: str | None = Field(None, description="Commit of the hub repository.")
    files: tuple[str, ...] = Field(
        (), description="Glob patterns of the files to fetch; all if empty."
    )
    gated: bool = Field(False, description="The hub asks for an accepted licence and a token.")

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if (self.path is None) == (self.repo is None):
            raise ValueError("a source names either a path or a repo")
        return self


class ModelEntry(BaseModel):
    """One model of the catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    aliases: tuple[str, ...] = ()
    family: Family = Field(description="vosk, the former name of onnx_asr, is taken as well.")
    format: Format
    source: Source
    languages: tuple[str, ...] = Field(
        (), description="Codes of Whisper's tokens (ISO 639-1 where there is one); empty: many."
    )
    translation: bool = Field(
        False, description="Translates speech to English. Whisper and nemo-conformer-aed can."
    )
    licence: str
    memory_mb: int = Field(
        gt=0, description="What one loaded copy takes, of the GPU or the RAM, MiB."
    )
    description: str = ""
    options: dict[str, Any] = Field(
        default_factory=dict, description="Default options that the engine of the family takes."
    )

    @field_validator("family", mode="before")
    @classmethod
    def _by_its_present_name(cls, family: object) -> object:
        return "onnx_asr" if family == "vosk" else family

    @model_validator(mode="after")
    def _can_translate(self) -> "ModelEntry":
        able = self.family == "whisper" or self.format == "nemo-conformer-aed"
        if self.translation and not able:
            raise ValueError(f"translation: models of the format {self.format} do not translate")
        return self

    @model_validator(mode="after")
    def _named_languages(self) -> "ModelEntry":
        if self.needs_language and not self.languages:
            raise ValueError("languages: are needed, as the model does not detect the language")
        return self

    @property
    def backend(self) -> Literal["onnx_asr", "sherpa_onnx"]:
        """The library of a recogniser in ONNX."""
        return "onnx_asr" if self.format in get_args(OnnxAsrFormat) else "sherpa_onnx"

    @property
    def needs_language(self) -> bool:
        """Whether a request has to name the language of the speech: Canary does not detect it."""
        return self.format == "nemo-conformer-aed"

    @property
    def detects_language(self) -> bool:
        """Whether the model finds the language by itself, and has no use for a hint."""
        return self.family == "onnx_asr" and not self.needs_language and len(self.languages) != 1

    @property
    def streaming(self) -> bool:
        """Whether the model is frame-synchronous."""
        return self.format.startswith("streaming_")

    def knows(self, language: str | None) -> bool:
        """Whether the model recognises a language; None is any."""
        return not language or not self.languages or language in self.languages

    @property
    def word_timestamps(self) -> bool:
        """Whether the words have times: every recogniser gives them, Canary excepted."""
        return self.family in ("whisper", "onnx_asr") and self.format != "nemo-conformer-aed"

    @property
    def hotwords(self) -> bool:
        """Whether hotwords have an effect.

        Whisper takes them as context, other models only in a beam search, which sherpa-onnx has for
        its own transducers. Those also need the word pieces among their files.
        """
        if self.family == "whisper":
            return True
        beams = self.options.get("decoding_method") == "modified_beam_search"
        return beams and self.format in ("transducer", "streaming_transducer")


class Catalogue(BaseModel):
    """All models, by id and alias."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[ModelEntry, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Catalogue":
        names = [name for m in self.models for name in (m.id, *m.aliases)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"names used twice in the catalogue: {', '.join(twice)}")
        return self

    @classmethod
    def load(cls, path: Path = CATALOGUE_PATH) -> "Catalogue":
        """Read and validate a catalogue file. Raises OSError, and ValueError with its path."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise ValueError("; ".join(reasons(error, str(path)))) from None
        except (UnicodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {error}") from None

    @cached_property
    def _by_name(self) -> dict[str, ModelEntry]:
        return {name: m for m in self.models for name in (m.id, *m.aliases)}

    def find(self, name: str) -> ModelEntry | None:
        """The model of an id or alias, None if there is none."""
        return self._by_name.get(name)
