"""The audio of jobs, wherever fsspec reaches: a directory, S3, MinIO."""

import contextlib
import datetime
import os
import time
from collections.abc import Sequence
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
            self._files.pipe_file(self._path(id), data)
            return
        # pipe_file leaves it to the system when the bytes reach the disk.
        with Path(self._path(id)).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def get(self, id: str) -> bytes:
        """See :meth:`speech.jobs.states.AudioStore.get`."""
        data: bytes = self._files.cat_file(self._path(id))
        return data

    def remove(self, id: str) -> None:
        """See :meth:`speech.jobs.states.AudioStore.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(id))

    def stored(self) -> Sequence[str]:
        """See :meth:`speech.jobs.states.AudioStore.stored`."""
        found = self._files.ls(self._root, detail=True, refresh=True)
        return [file["name"].rsplit("/", 1)[1] for file in found if file["type"] == "file"]

    def age_s(self, id: str) -> float:
        """See :meth:`speech.jobs.states.AudioStore.age_s`."""
        stored_at: datetime.datetime = self._files.modified(self._path(id))
        return time.time() - stored_at.timestamp()

    def _path(self, id: str) -> str:
        return f"{self._root}/{id}"
