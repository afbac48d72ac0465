"""Where the models that are loaded run, from the rows of the caches of all replicas."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from api.service import SpeechService

log = logging.getLogger(f"speechgraph.{__name__}")

DEVICES_AGE_S = 2.0
"""How old the answer of the replicas may be."""
DEVICES_WAIT_S = 0.5
"""How long a caller waits for a new one; then it gets the one before."""


class ModelDevice(TypedDict):
    """Where replicas run a model. ``asked`` is the setting; "auto" may be either device."""

    asked: Literal["auto", "cpu", "cuda"]
    device: Literal["cpu", "cuda"]
    compute_type: str


def devices_by_model(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[ModelDevice]]:
    """The different devices of each loaded model; ``rows`` as :class:`api.models.CacheEntry`."""
    found: dict[str, list[ModelDevice]] = {}
    for row in rows:
        device: ModelDevice = {
            "asked": row["asked"],
            "device": row["device"],
            "compute_type": row["compute_type"],
        }
        devices = found.setdefault(row["model_name"], [])
        if device not in devices:
            devices.append(device)
    return found


class RecentDevices:
    """:func:`devices_by_model` for a caller that must not wait, such as a probe."""

    def __init__(self, service: SpeechService) -> None:
        self._service = service
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._found: dict[str, list[ModelDevice]] = {}

    async def get(self) -> dict[str, list[ModelDevice]]:
        """Those of the deployments that are required, as of their last answer."""
        if self._asking is None and time.monotonic() - self._asked_at > DEVICES_AGE_S:
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=DEVICES_WAIT_S)
        return self._found

    async def _ask(self) -> None:
        try:
            self._found = devices_by_model(await self._service.cache_stats(required_only=True))
        except Exception as error:  # readiness is not about this
            log.warning("the devices of the models cannot be read: %r", error)
        finally:
            self._asking = None
