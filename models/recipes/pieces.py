"""Word pieces of the CTC models and their places in time.

Every word is a lone ``▁`` followed by its pieces. ``▁`` is to be emitted where the word starts and
each piece where it ends, so that token times of a recognition give word starts and word ends.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from models.recipes.bank import Clip
from models.recipes.grammar import normalise
from models.recipes.synth import Span

SPACE, BLANK = "▁", "<blk>"
FRAME_S = 0.04
_PIECES = 512


class Pieces:
    """A closed set of pieces; the blank is the last identifier, as sherpa-onnx wants it."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self._processor.get_piece_size()
        spoken = [self._processor.id_to_piece(i) for i in range(1, size)]
        self.names = [SPACE, *(name for name in spoken if name != SPACE), BLANK]
        self._ids = {name: i for i, name in enumerate(self.names)}

    @classmethod
    def train(cls, clips: Iterable[Clip]) -> "Pieces":
        """Byte-pair pieces of the words of the bank."""
        words = [word for clip in clips for word in normalise(clip.text).split()]
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words),
            model_writer=model,
            model_type="bpe",
            vocab_size=_PIECES,
            character_coverage=1.0,
            add_dummy_prefix=False,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
        return cls(model.getvalue())

    @property
    def blank(self) -> int:
        return len(self.names) - 1

    def encode(self, word: str) -> list[int]:
        """Identifiers of one written word, ``▁`` first."""
        names = self._processor.encode(normalise(word).replace(" ", ""), out_type=str)
        return [0] + [self._ids[name] for name in names if name in self._ids and name != SPACE]

    def align(self, words: Iterable[Span]) -> list[tuple[int, int]]:
        """(identifier, frame) of every piece, frames strictly rising."""
        aligned: list[tuple[int, int]] = []
        last = -1
        for word, start_s, end_s in words:
            identifiers = self.encode(word)
            letters = [len(self.names[i]) for i in identifiers[1:]]
            at_s = start_s
            for position, identifier in enumerate(identifiers):
                if position:
                    at_s += (end_s - start_s) * letters[position - 1] / sum(letters)
                last = max(last + 1, int(at_s / FRAME_S))
                aligned.append((identifier, last))
        return aligned

    def write_tokens(self, path: Path) -> None:
        """The ``tokens.txt`` of sherpa-onnx."""
        lines = [f"{name} {i}\n" for i, name in enumerate(self.names)]
        path.write_text("".join(lines), encoding="utf-8")
