"""The command ``python clients/live.py`` against a scripted server."""

import asyncio
import json
import os
import sys
import wave
from pathlib import Path

import pytest

from clients import live
from clients.live import line
from tests.unit.clients.scripted_server import (
    RATE,
    WAIT_S,
    Scripted,
    expected_finals,
    ramp,
    serving,
    texts,
)
from tests.unit.sound_files import encode, tone


def test_a_line_has_the_times_the_speaker_the_strongest_emotion_and_the_text() -> None:
    final = {"start": 1.25, "end": 2.5, "text": " Hello", "speaker": "S1"}
    assert line(final) == "    1.25     2.50  S1  Hello"
    final["emotion"] = {"neutral": 0.1, "angry": 0.9}
    assert line(final) == "    1.25     2.50  S1  angry  Hello"


async def command_line(
    server: Scripted, *arguments: str, audio: bytes | None = None, key: str = ""
) -> str:
    """What the command prints."""
    async with serving(server) as url, asyncio.timeout(WAIT_S):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            live.__file__,
            "--url",
            url,
            "--speed",
            "max",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "SPEECHGRAPH_KEY": key},
        )
        try:
            out, _ = await process.communicate(audio)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0
    return out.decode()


@pytest.mark.parametrize("piped", [False, True])
async def test_the_command_prints_the_finals_of_a_wav(tmp_path: Path, piped: bool) -> None:
    path = tmp_path / "ramp.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(ramp(2.5))
    if piped:
        out = await command_line(Scripted(), "-", audio=path.read_bytes())
    else:
        out = await command_line(Scripted(), str(path))
    assert [row.split() for row in out.splitlines()] == [
        ["0.00", "1.00", "0-999"],
        ["1.00", "2.00", "1000-1999"],
        ["2.00", "2.50", "2000-2499"],
    ]


async def test_the_command_prints_every_event_of_a_pipe() -> None:
    out = await command_line(Scripted(), "-", "--rate", str(RATE), "--json", audio=ramp(2.5))
    events = [json.loads(row) for row in out.splitlines()]
    assert texts(events) == expected_finals(2.5)
    assert events[-1] == {"type": "done"}


async def test_the_command_takes_several_addresses() -> None:
    async with serving(Scripted()) as unreachable:
        pass
    arguments = ("--url", unreachable, "-", "--rate", str(RATE))
    out = await command_line(Scripted(), *arguments, audio=ramp(1.0))
    assert out.split()[-1] == "0-999"


async def test_the_command_decodes_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "tone.flac"
    path.write_bytes(encode("flac", "flac", tone(1.5, 44_100), 44_100))
    server = Scripted()
    out = await command_line(server, str(path))
    assert [row.split()[:2] for row in out.splitlines()] == [["0.00", "1.00"], ["1.00", "1.50"]]
    assert server.starts[0]["sample_rate"] == 16_000


async def test_the_command_sends_the_key_of_the_environment() -> None:
    server = Scripted()
    server.key = "0123abcd"
    out = await command_line(server, "-", "--rate", str(RATE), audio=ramp(1.0), key=server.key)
    assert out.split()[-1] == "0-999"
