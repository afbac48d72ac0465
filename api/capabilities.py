"""What a request asks of a recogniser against what the catalogue states that it can do."""

from collections.abc import Iterator, Set

from configs.catalogue import Catalogue, Family, ModelEntry
from speech.errors import InvalidRequest
from speech.ports import TranscribeOptions


def check_capabilities(
    entry: ModelEntry, options: TranscribeOptions, catalogue: Catalogue, families: Set[Family]
) -> None:
    """Raise InvalidRequest where the model cannot translate, or has no language that it knows.

    The message names the models of ``families`` that translate, and the languages.
    """
    if options.task == "translate" and not entry.translation:
        able = [m.id for m in catalogue.models if m.translation and m.family in families]
        others = f"these do: {', '.join(able)}" if able else "no model that is served here does"
        raise InvalidRequest(f"Model '{entry.id}' does not translate; {others}.")
    if entry.needs_language and not options.language:
        raise InvalidRequest(
            f"language: model '{entry.id}' does not detect it; name one of "
            f"{', '.join(entry.languages)}."
        )
    if not entry.knows(options.language):
        raise InvalidRequest(
            f"language: model '{entry.id}' does not know '{options.language}'; "
            f"it knows {', '.join(entry.languages)}."
        )


def ignored_hints(entry: ModelEntry, options: TranscribeOptions) -> Iterator[str]:
    """Warnings about hints that the model of a live stream does not use."""
    if options.language and entry.detects_language:
        yield f"language: model '{entry.id}' detects it and ignores the hint"
    if options.hotwords and not entry.hotwords:
        yield f"hotwords: model '{entry.id}' takes none"
    if options.initial_prompt and entry.family != "whisper":
        yield f"initial_prompt: model '{entry.id}' takes none"
