"""Bodies of uploads as clients send them: forms, plain audio, compressed with gzip."""

import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import Any

from fastapi.exceptions import RequestValidationError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request

from speech.errors import AudioTooLarge, InvalidRequest
from speech.media.headerless import as_wav

FILE_FIELDS: Mapping[str, str] = {"/v1/process": "audio", "/transcribe": "audio_file"}
"""The field of the file on each route; ``file`` on all others."""

REPEATED = frozenset(
    (
        "clip_timestamps",
        "include",
        "keywords",
        "known_speaker_names",
        "known_speaker_references",
        "languages",
        "tasks",
        "timestamp_granularities",
    )
)
"""Lists: a form has them once for each value, as it has every name that ends in ``[]``."""

HEADERLESS_TYPES: Mapping[str, tuple[str, int | None]] = {
    "audio/l16": ("pcm_s16be", None),
    "audio/pcm": ("pcm_s16le", None),
    "audio/pcmu": ("g711_ulaw", 8000),
    "audio/pcma": ("g711_alaw", 8000),
    "audio/basic": ("g711_ulaw", 8000),
}
"""Media types of headerless audio: the encoding, and the rate where the type implies it."""

TWICE = "given_twice"
"""Type of the error of a field that is given more than once."""

_INFLATED_AT_ONCE = 1 << 16
_SPOOLED_BYTES = 1 << 20


class UploadRequest(Request):
    """A request whose form may also be a body that is the file itself.

    Then the other fields are those of the query. ``max_bytes`` bounds what gzip inflates.
    """

    max_bytes: int

    def form(self, **limits: Any) -> Any:
        """The form, each field once. Errors are those of a form that is wrong."""
        return self._read(**limits)

    async def _read(self, **limits: Any) -> FormData:
        kind, options = parse_options_header(self.headers.get("Content-Type"))
        media_type = kind.decode("latin-1").lower()
        path = self.scope["path"].removeprefix(self.scope.get("root_path", ""))
        field = FILE_FIELDS.get(path, "file")
        try:
            async with aclosing(self._plain()) as body:
                if media_type == "multipart/form-data":
                    form = await _Multipart(self.headers, body, field, **limits).parse()
                elif media_type == "application/x-www-form-urlencoded":
                    limits.pop("max_files", None)
                    form = await FormParser(self.headers, body, **limits).parse()
                elif _is_audio(media_type):
                    form = await self._file_alone(body, field)
                elif not media_type:
                    form = FormData()
                else:
                    raise HTTPException(
                        415,
                        f"The body is {media_type[:100]}; this route takes a form "
                        f"(multipart/form-data) with the file in the field '{field}', or the file "
                        "alone with its own type, audio/… or video/….",
                    )
        except MultiPartException as error:
            raise HTTPException(400, error.message) from None
        self._form = form
        try:
            _check_once(form)
            # An empty text is how pages send a field that was left out.
            form = FormData([item for item in form.multi_items() if item[1] != ""])
            return await _with_header(form, field, media_type, options)
        except BaseException:
            await form.close()
            raise

    async def _file_alone(self, body: AsyncGenerator[bytes, None], field: str) -> FormData:
        spooled: Any = SpooledTemporaryFile(_SPOOLED_BYTES)  # noqa: SIM115
        file = UploadFile(spooled, size=0, filename="upload")
        try:
            async for chunk in body:
                await file.write(chunk)
            await file.seek(0)
        except BaseException:
            file.file.close()
            raise
        return FormData([(field, file), *self.query_params.multi_items()])

    async def _plain(self) -> AsyncGenerator[bytes, None]:
        """The body without its compression. Raises AudioTooLarge, InvalidRequest."""
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        async with aclosing(self.stream()) as stream:
            if encoding in ("", "identity"):
                async for chunk in stream:
                    yield chunk
            elif encoding in ("gzip", "x-gzip"):
                async with aclosing(_inflated(stream, self.max_bytes)) as inflated:
                    async for chunk in inflated:
                        yield chunk
            else:
                raise HTTPException(
                    415, f"Content-Encoding is {encoding[:100]}; gzip is taken, or none."
                )


class _Multipart(MultiPartParser):
    """Takes the part of the file for a file also where it has no file name."""

    def __init__(self, headers: Any, stream: Any, field: str, **limits: Any) -> None:
        super().__init__(headers, stream, **limits)
        self._field = field.encode()

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name") == self._field and b"filename" not in options:
            part.content_disposition = (part.content_disposition or b"") + b'; filename="upload"'
        super().on_headers_finished()


async def _inflated(
    stream: AsyncGenerator[bytes, None], max_bytes: int
) -> AsyncGenerator[bytes, None]:
    inflater, total = zlib.decompressobj(31), 0
    async for chunk in stream:
        while chunk:
            if inflater.eof:  # a gzip file may have several members
                inflater = zlib.decompressobj(31)
            try:
                plain = inflater.decompress(chunk, _INFLATED_AT_ONCE)
            except zlib.error:
                raise InvalidRequest("The body is not what gzip writes.") from None
            total += len(plain)
            if total > max_bytes:
                raise AudioTooLarge(f"The request body is larger than {max_bytes} bytes.")
            if plain:
                yield plain
            chunk = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
    if not inflater.eof:
        raise InvalidRequest("The gzip body is cut off.")


def _is_audio(media_type: str) -> bool:
    return media_type.startswith(("audio/", "video/")) or media_type in (
        "application/octet-stream",
        "application/ogg",
    )


def _check_once(form: FormData) -> None:
    counts = Counter(name for name, _ in form.multi_items())
    for name, count in counts.items():
        if count > 1 and name not in REPEATED and not name.endswith("[]"):
            raise _wrong(name, "the field is given more than once", TWICE)


async def _with_header(
    form: FormData, field: str, media_type: str, options: Mapping[bytes, bytes]
) -> FormData:
    """The form with headerless audio made a file; its fields about the samples are taken out."""
    given = {
        name: str(form[name]) for name in ("encoding", "sample_rate", "channels") if form.get(name)
    }
    file = form.get(field)
    if isinstance(file, UploadFile) and media_type == "multipart/form-data":
        kind, options = parse_options_header(file.content_type)
        media_type = kind.decode("latin-1").lower()
    if media_type in HEADERLESS_TYPES:
        encoding, rate = HEADERLESS_TYPES[media_type]
        if b"rate" in options or rate or "sample_rate" in given:
            named = {
                "encoding": encoding,
                "channels": options.get(b"channels", b"1").decode("latin-1"),
            }
            named["sample_rate"] = options.get(b"rate", str(rate).encode()).decode("latin-1")
            given = named | given
    if "encoding" not in given or not isinstance(file, UploadFile):
        return form
    numbers = {}
    for name in ("sample_rate", "channels"):
        text = given.get(name, "")
        if not text.isdecimal():
            raise _wrong(name, "headerless audio needs encoding, sample_rate and channels")
        numbers[name] = int(text[:9])
    data = await file.read()
    await file.close()
    if data:
        data = await run_in_threadpool(as_wav, data, given["encoding"], **numbers)
    whole = UploadFile(BytesIO(data), size=len(data), filename=file.filename)
    rest = [(n, v) for n, v in form.multi_items() if n not in (field, "encoding", *numbers)]
    return FormData([(field, whole), *rest])


def _wrong(name: str, message: str, kind: str = "value_error") -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", name), "msg": message}])
