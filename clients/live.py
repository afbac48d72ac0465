"""Sends a recording, or audio from a pipe, to a running service and prints the words.

Files other than WAV and raw PCM need the package ``av``.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import sys
import wave
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import cast

if __name__ == "__main__":  # Python looks for imports beside this file, not in the repository
    sys.path.insert(0, str(Path(__file__).parent.parent))

from clients.stream_client import MESSAGE_S, URL, Event, StreamClient, StreamError


def read_audio(name: str, raw_rate: int) -> tuple[int, Iterator[bytes]]:
    """The rate and the 16-bit mono audio of a file, or of standard input for ``-``.

    Standard input is WAV, or raw PCM at ``raw_rate`` like files named ``.raw`` and ``.pcm``.
    """
    file = cast(BufferedReader, sys.stdin.buffer) if name == "-" else Path(name).open("rb")  # noqa: SIM115
    if file.peek(4)[:4] == b"RIFF":
        with contextlib.suppress(wave.Error):
            sound = wave.open(file)  # noqa: SIM115
            if (sound.getnchannels(), sound.getsampwidth()) == (1, 2):
                rate = sound.getframerate()
                return rate, iter(lambda: sound.readframes(round(MESSAGE_S * rate)), b"")
    elif name == "-" or Path(name).suffix in (".raw", ".pcm"):
        size = 2 * round(MESSAGE_S * raw_rate)
        return raw_rate, iter(lambda: file.read(size), b"")
    if name == "-":
        raise SystemExit("standard input must be 16-bit mono, as WAV or raw PCM")
    file.close()
    if importlib.util.find_spec("av") is None:
        raise SystemExit(f"{name}: only 16-bit mono WAV can be read without the package `av`")
    return 16_000, _decoded(name)


def _decoded(name: str) -> Iterator[bytes]:
    import av

    with av.open(name) as container:
        resampler = av.AudioResampler("s16", "mono", 16_000)
        for frame in itertools.chain(container.decode(audio=0), [None]):
            for block in resampler.resample(frame):
                yield block.to_ndarray().tobytes()


async def _feed(stream: StreamClient, audio: Iterator[bytes], rate: int, realtime: bool) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    try:
        while chunk := await asyncio.to_thread(next, audio, b""):
            await stream.send(chunk)
            due += len(chunk) / 2 / rate
            if realtime:
                await asyncio.sleep(due - loop.time())
    finally:
        await stream.finish()


def line(event: Event) -> str:
    """A final as a line of text."""
    emotion: dict[str, float] = event.get("emotion") or {}
    notes = [event.get("speaker"), max(emotion, key=emotion.__getitem__, default=None)]
    prefix = "".join(f"{note}  " for note in notes if note)
    return f"{event['start']:8.2f} {event['end']:8.2f}  {prefix}{event['text'].strip()}"


async def _stream(arguments: argparse.Namespace) -> None:
    rate, audio = read_audio(arguments.file, arguments.rate)
    key = os.environ.get("SPEECHGRAPH_KEY")
    async with StreamClient(
        arguments.url or URL,
        model=arguments.model,
        language=arguments.language,
        sample_rate=rate,
        headers={"X-API-Key": key} if key else None,
    ) as stream:
        feeding = asyncio.create_task(_feed(stream, audio, rate, arguments.speed == "realtime"))
        try:
            async for event in stream:
                if arguments.json:
                    sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
                elif event["type"] == "final":
                    sys.stdout.write(line(event) + "\n")
                elif event["type"] == "error":
                    sys.stderr.write(f"{event.get('code')}: {event.get('message')}\n")
                sys.stdout.flush()
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


def main() -> None:
    """Send one recording, or audio from a pipe, and print each utterance when it is final.

    The API key, if the service needs one, is read from the environment variable SPEECHGRAPH_KEY.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", help="a sound file, or - for standard input")
    parser.add_argument("--url", action="append", help="give it again for further addresses")
    parser.add_argument("--model")
    parser.add_argument("--language")
    parser.add_argument("--rate", type=int, default=16_000, help="of raw PCM, Hz")
    parser.add_argument("--speed", choices=["realtime", "max"], default="realtime")
    parser.add_argument("--json", action="store_true", help="every event, one JSON per line")
    try:
        asyncio.run(_stream(parser.parse_args()))
    except (StreamError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
