"""A file through the recogniser of livekit-agents, as its voice agents use it: run in its own
environment with the port, the key and a file of PCM16, mono, 24 kHz. Prints each final transcript.

The microphone is muted for a while in the middle, when nothing is sent.
"""

import asyncio
import sys
from pathlib import Path

from livekit import rtc
from livekit.agents import stt
from livekit.agents.utils import http_context
from livekit.plugins import openai

RATE = 24_000
FRAME = RATE // 50
MUTED_S = 3.0


async def main(port: str, key: str, file: str) -> None:
    audio = Path(file).read_bytes()  # noqa: ASYNC240  # nothing else runs yet
    async with http_context.open():
        recogniser = openai.STT(
            model="gpt-4o-transcribe",
            use_realtime=True,
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key=key,
        )
        stream = recogniser.stream()

        async def speak() -> None:
            for turn in range(2):
                for first in range(0, len(audio), 2 * FRAME):
                    frame = audio[first : first + 2 * FRAME].ljust(2 * FRAME, b"\0")
                    stream.push_frame(rtc.AudioFrame(frame, RATE, 1, FRAME))
                    await asyncio.sleep(0.005)
                if turn == 0:
                    await asyncio.sleep(MUTED_S)

        speaking = asyncio.create_task(speak())
        finals = 0
        async for event in stream:
            if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
                sys.stdout.write(f"{event.alternatives[0].text}\n")
                finals += 1
                if finals == 2:
                    break
        await speaking
        await stream.aclose()


asyncio.run(main(*sys.argv[1:]))
