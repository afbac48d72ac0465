"""The service as OpenAI's clients see it, on a real socket: its own clients, and raw HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAI

from speech.transcript import Segment, Transcript, Turn, Word
from tests.unit.fake_service import FakeService, app_of, listening

WAIT_S = 60.0
"""More than anything here takes."""
CALM = {"angry": 0.1, "sad": 0.2, "neutral": 0.3, "positive": 0.4}
HELLO = Segment(
    0.0, 1.5, " Hello there.",
    (Word(" Hello", 0.0, 0.5, 0.5), Word(" there.", 0.6, 1.5, 1.0)),
    speaker="SPEAKER_07", tokens=(1, 2), seek=300, temperature=0.2, avg_logprob=-0.5,
    compression_ratio=1.5, no_speech_prob=0.25,
)  # fmt: skip
GOOD = Segment(2.0, 2.5, " Good.", (Word(" Good.", 2.0, 2.5, 0.25),), speaker="SPEAKER_03")
BYE = Segment(3.0, 3.5, " Bye.", (Word(" Bye.", 3.0, 3.5, 0.0),), speaker="SPEAKER_07")
TRANSCRIPT = Transcript(
    duration=3.2,
    language="en",
    segments=(HELLO, GOOD, BYE),
    turns=(Turn(0.0, 1.5, "SPEAKER_07"), Turn(1.9, 2.6, "SPEAKER_03")),
)
TEXT = "Hello there. Good. Bye."
USAGE = {"type": "duration", "seconds": 4}
FILE = ("speech.wav", b"RIFF")


class Api:
    """The service as its clients see it: OpenAI's two clients, and raw HTTP."""

    def __init__(self, address: str, stack: AsyncExitStack) -> None:
        self._address = f"{address}/v1"
        self._stack = stack
        self.http = httpx.AsyncClient(base_url=self._address, timeout=WAIT_S)
        self.sdk = AsyncOpenAI(api_key="none", base_url=self._address, max_retries=0)
        stack.push_async_callback(self.http.aclose)
        stack.push_async_callback(self.sdk.close)

    async def in_thread(self, ask: Callable[[OpenAI], Any]) -> Any:
        """What the synchronous client answers."""

        def call() -> Any:
            with OpenAI(api_key="none", base_url=self._address, max_retries=0) as sdk:
                return ask(sdk)

        return await asyncio.to_thread(call)

    async def transcribe(self, **fields: Any) -> Any:
        return await self.sdk.audio.transcriptions.create(
            **{"file": FILE, "model": "whisper-1"} | fields
        )

    async def post(self, path: str = "transcriptions", **fields: Any) -> httpx.Response:
        data = {"model": "whisper-1"} | fields
        return await self.http.post(f"/audio/{path}", files={"file": FILE}, data=data)


@asynccontextmanager
async def serving(service: FakeService, **limits: Any) -> AsyncIterator[Api]:
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(listening(app_of(service, **limits)))
        yield Api(address, stack)


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The error object, and nothing beside it."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error
