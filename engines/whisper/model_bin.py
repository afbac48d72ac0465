"""The variables in ``model.bin`` of a CTranslate2 Whisper, and a model of its decoder alone.

The file is written by ``ctranslate2/specs/model_spec.py``: a version, the name and the revision of
the specification, then the variables (name, shape, type, bytes) and the aliases of some. Integers
are little-endian; a string has its length before it and a zero after it, which the length counts.
"""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

FILE = "model.bin"
_VERSIONS = range(4, 7)
_SPECIFICATION = "WhisperSpec"
_ITEM_BYTES = (4, 1, 2, 4, 2, 2)
"""Of float32, int8, int16, int32, float16 and bfloat16, in the order of their ids."""
_SMALL = 64
_ENCODER = re.compile(
    r"encoder/(num_heads|position_encodings/encodings|conv[12]/(weight|weight_scale|bias)"
    r"|((layer_\d+/(self_attention|ffn)/)?layer_norm/(gamma|beta))"
    r"|layer_\d+/(self_attention|ffn)/linear_[01]/(weight|weight_scale|bias))"
)
"""What an encoder consists of."""


class UnknownFormat(Exception):
    """The file has parts that are not known here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable; ``data`` is the part of the mapped file, ``dtype`` CTranslate2's id of a type.

    ids: 0 float32, 1 int8, 2 int16, 3 int32, 4 float16, 5 bfloat16.
    """

    shape: tuple[int, ...]
    dtype: int
    data: Bytes


class ModelBin:
    """A mapped ``model.bin``: no weight is read before it is used."""

    def __init__(self, folder: Path) -> None:
        """Read the names and the places of the variables. Raises UnknownFormat, OSError."""
        self._bytes: Bytes = np.memmap(folder / FILE, np.uint8, "r")
        self._position = 0
        try:
            self._read()
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise UnknownFormat(f"{FILE} is damaged: {error}") from error
        unknown = [name for name in self.encoder_names() if not _ENCODER.fullmatch(name)]
        if unknown:
            raise UnknownFormat(f"the encoder in {FILE} has unknown variables: {unknown[0]}")

    def __contains__(self, name: str) -> bool:
        return self._resolved(name) in self._variables

    def __getitem__(self, name: str) -> Variable:
        """A variable by its name or an alias. Raises KeyError."""
        return self._variables[self._resolved(name)]

    def encoder_names(self) -> Iterator[str]:
        """The names of all variables of the encoder, aliases included."""
        for name in self._variables:
            if name.startswith("encoder/"):
                yield name
        for alias, name in self._aliases.items():
            if alias.startswith("encoder/"):
                yield alias
                if f"{name}_scale" in self:
                    yield f"{alias}_scale"

    def write_decoder(self, file: BinaryIO) -> None:
        """Write a model with this decoder, and an encoder that loads and is too small to run.

        CTranslate2 has no Whisper without an encoder, and takes the number of mels, the width and
        the number formats from its variables. Of the others a corner is left, of one layer.
        """
        stub = {name: self._stub(name) for name in self.encoder_names() if not _dropped(name)}
        rest = {n: v for n, v in self._variables.items() if not n.startswith("encoder/")}
        aliases = {a: n for a, n in self._aliases.items() if not a.startswith("encoder/")}
        file.write(struct.pack("<I", self._version))
        file.write(_string(_SPECIFICATION))
        file.write(struct.pack("<II", self._revision, len(rest) + len(stub)))
        for name, variable in {**rest, **stub}.items():
            shape = variable.shape
            file.write(_string(name))
            file.write(struct.pack(f"<B{len(shape)}I", len(shape), *shape))
            file.write(struct.pack("<BI", variable.dtype, len(variable.data)))
            file.write(variable.data.data)
        file.write(struct.pack("<I", len(aliases)))
        for alias, name in aliases.items():
            file.write(_string(alias) + _string(name))

    def _stub(self, name: str) -> Variable:
        whole = self[name]
        if name.startswith("encoder/layer_norm/"):  # has the width of the model
            return whole
        shape = [min(size, _SMALL) for size in whole.shape]
        if name == "encoder/conv1/weight":
            shape[1] = whole.shape[1]  # the number of mels
        size = prod(shape) * _ITEM_BYTES[whole.dtype]
        return Variable(tuple(shape), whole.dtype, whole.data[:size])

    def _resolved(self, name: str) -> str:
        if name.endswith("_scale"):
            weight = name.removesuffix("_scale")
            return self._aliases.get(weight, weight) + "_scale"
        return self._aliases.get(name, name)

    def _read(self) -> None:
        self._version = self._next("I")
        if self._version not in _VERSIONS:
            raise UnknownFormat(f"{FILE} has the unknown version {self._version}")
        specification = self._text()
        if specification != _SPECIFICATION:
            raise UnknownFormat(f"{FILE} is a {specification}, not a {_SPECIFICATION}")
        self._revision = self._next("I")
        self._variables: dict[str, Variable] = {}
        for _ in range(self._next("I")):
            name = self._text()
            shape = tuple(self._next("I") for _ in range(self._next("B")))
            dtype, size = self._next("B"), self._next("I")
            if size != prod(shape) * _ITEM_BYTES[dtype]:
                raise UnknownFormat(f"{FILE} is damaged: the size of {name} contradicts its shape")
            self._variables[name] = Variable(shape, dtype, self._raw(size))
        self._aliases = {self._text(): self._text() for _ in range(self._next("I"))}

    def _raw(self, size: int) -> Bytes:
        part = self._bytes[self._position : self._position + size]
        if len(part) != size:
            raise UnknownFormat(f"{FILE} is cut off")
        self._position += size
        return part

    def _next(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self._raw(struct.calcsize(f"<{kind}")).tobytes())
        return value

    def _text(self) -> str:
        return self._raw(self._next("H"))[:-1].tobytes().decode()


@contextmanager
def decoder_folder(folder: Path) -> Iterator[Path]:
    """A folder with the files of ``folder``, in which ``model.bin`` has the decoder alone.

    While it is open, the decoder is in memory once more; nothing of it is written to a disk.
    Raises UnknownFormat, OSError.
    """
    model = ModelBin(folder)
    with (
        TemporaryDirectory(prefix="whisper-decoder-") as temporary,
        os.fdopen(os.memfd_create(FILE), "wb") as file,
    ):
        model.write_decoder(file)
        file.flush()
        for source in folder.resolve().iterdir():
            (Path(temporary) / source.name).symlink_to(
                source if source.name != FILE else f"/proc/self/fd/{file.fileno()}"
            )
        yield Path(temporary)


def _dropped(name: str) -> bool:
    layer = re.match(r"encoder/layer_(\d+)/", name)
    return layer is not None and int(layer[1]) > 0


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(f"<H{len(encoded)}sx", len(encoded) + 1, encoded)
