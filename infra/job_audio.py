"""The audio of jobs on any file system of fsspec: a directory, S3, MinIO."""

import contextlib
import datetime
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem


class JobAudio:
    """Implements :class:`speech.jobs.states.AudioStore` under ``url``, a directory or fsspec URL.

    Options of other file systems come from the environment, see docs/jobs.md.
    """

    def __init__(self, url: str) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._files.makedirs(self._root, exist_ok=True)

    def put(self, id: str, data: bytes) -> None:
        """See :meth:`speech.jobs.states.AudioStore.put`."""
        if not isinstance(self._files, LocalFileSystem):
            with _os_errors():
                self._files.pipe_file(self._path(id), data)
            return
        # pipe_file does not sync the file to the disk.
        with Path(self._path(id)).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def get(self, id: str) -> bytes:
        """See :meth:`speech.jobs.states.AudioStore.get`."""
        with _os_errors():
            data: bytes = self._files.cat_file(self._path(id))
        return data

    def remove(self, id: str) -> None:
        """See :meth:`speech.jobs.states.AudioStore.remove`."""
        with contextlib.suppress(FileNotFoundError), _os_errors():
            self._files.rm_file(self._path(id))

    def stored(self) -> Sequence[str]:
        """See :meth:`speech.jobs.states.AudioStore.stored`."""
        with _os_errors():
            found = self._files.ls(self._root, detail=True, refresh=True)
        return [file["name"].rsplit("/", 1)[1] for file in found if file["type"] == "file"]

    def age_s(self, id: str) -> float:
        """See :meth:`speech.jobs.states.AudioStore.age_s`."""
        with _os_errors():
            stored_at: datetime.datetime = self._files.modified(self._path(id))
        return time.time() - stored_at.timestamp()

    def _path(self, id: str) -> str:
        return f"{self._root}/{id}"


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raise OSError for errors that fsspec passes on untranslated, such as botocore's."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(repr(error)) from error
