"""Removes jobs and audio after their time to live, and audio that belongs to no job."""

import logging
import time
from collections.abc import Collection, Iterator

from speech.jobs.states import AudioStore, JobStore

logger = logging.getLogger(f"speechgraph.{__name__}")

ORPHAN_AGE_S = 3600.0
"""Audio without a job is removed at this age: until then its submission may be unfinished."""
REMOVAL_RETRY_S = 60.0
"""Interval between attempts to remove the same audio."""


class Retention:
    """One worker's part in removing what expired. Every method blocks.

    Audio that cannot be removed is retried until it can be. Its job stays, and its bytes count as
    stored meanwhile: they occupy the space that the bound of stored audio protects.
    """

    def __init__(
        self, store: JobStore, audio: AudioStore, audio_ttl_s: float, result_ttl_s: float
    ) -> None:
        self._store = store
        self._audio = audio
        self._audio_ttl_s = audio_ttl_s
        self._result_ttl_s = result_ttl_s
        self._expired = _Removal(audio)
        self._orphans = _Removal(audio)

    def expire(self) -> None:
        """Remove audio and jobs that ended longer ago than their times to live."""
        for id in self._expired.removed(self._store.expired_audio(self._audio_ttl_s)):
            self._store.audio_removed(id)
        self._store.delete_expired(self._result_ttl_s)

    def remove_orphans(self) -> None:
        """Remove audio of submissions that never finished."""
        without_job = set(self._audio.stored()) - self._store.with_audio()
        for _ in self._orphans.removed([id for id in without_job if self._is_old(id)]):
            pass

    def _is_old(self, id: str) -> bool:
        try:
            return self._audio.age_s(id) > ORPHAN_AGE_S
        except OSError:
            return False  # removed by another worker, or checked again by the next call


class _Removal:
    """Removes audio; what cannot be removed is logged once and retried after a while."""

    def __init__(self, audio: AudioStore) -> None:
        self._audio = audio
        self._retry_at: dict[str, float] = {}

    def removed(self, ids: Collection[str]) -> Iterator[str]:
        """Remove the audio of these jobs, which are all that have to be; those that succeeded."""
        self._retry_at = {id: self._retry_at[id] for id in ids if id in self._retry_at}
        for id in ids:
            if time.monotonic() < self._retry_at.get(id, 0.0):
                continue
            try:
                self._audio.remove(id)
            except OSError as error:
                if id not in self._retry_at:
                    logger.error("job %s: its audio cannot be removed: %r", id, error)
                self._retry_at[id] = time.monotonic() + REMOVAL_RETRY_S
            else:
                yield id
