"""Clients that others wrote, in versions that are pinned: OpenAI's for Node, livekit-agents."""

import asyncio
import os
import re
import shutil
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, silence, speak
from tests.unit.live_service import serving

PACKAGES = Path(__file__).with_name("node")
KEY = "0123456789abcdef"
UNREACHABLE = re.compile("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH")

LIVEKIT = ("livekit-agents==1.8.9", "livekit-plugins-openai==1.8.9")
"""330 MB: `make test-clients` asks for it."""
SPOKEN = exact(silence(1), speak(7, word_s=1.0), silence(2))

pytestmark = pytest.mark.timeout(300)


async def run(folder: Path, *command: str, **environment: str) -> tuple[int | None, str, str]:
    """The status, the output and the errors of a command."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def behind_tls(port: int, certificate: Path, key: Path) -> AsyncIterator[int]:
    """The port of a proxy that speaks TLS, in front of one on this machine."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", port)
        ways = (forward(reader, downstream), forward(upstream, writer))
        await asyncio.gather(*ways, return_exceptions=True)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
async def test_the_lines_for_node_transcribe_a_file(tmp_path: Path, repository: Path) -> None:
    """Those of docs/api/realtime.md as they stand, through TLS."""
    page = (repository / "docs/api/realtime.md").read_text(encoding="utf-8")
    lines = re.search(r"```js\n(import .*?)```", page, re.DOTALL)
    assert lines is not None
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PACKAGES / name, tmp_path)
    status, _, errors = await run(tmp_path, "npm", "ci", "--no-audit", "--no-fund")
    if status and UNREACHABLE.search(errors):
        pytest.skip("the registry of npm is not reachable")
    assert status == 0, errors
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    status, _, errors = await run(
        tmp_path,
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(key), "-out", str(certificate)),
    )
    assert status == 0, errors
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{KEY}\n")
    (tmp_path / "speech.raw").write_bytes(SPOKEN)
    async with (
        serving(FakeModels(), whole=True, keys_file=str(keys)) as service,
        behind_tls(service.port, certificate, key) as port,
    ):
        script = lines[1].replace("https://speech.example.com", f"https://localhost:{port}")
        (tmp_path / "session.mjs").write_text(script, encoding="utf-8")
        status, out, errors = await run(
            tmp_path,
            *("node", "session.mjs"),
            NODE_EXTRA_CA_CERTS=str(certificate),
            SPEECHGRAPH_KEY=KEY,
        )
        assert (status, errors) == (0, "")
    assert "7" in out.split(), out


@pytest.mark.skipif("SPEECHGRAPH_TEST_CLIENTS" not in os.environ, reason="large; only if asked for")
async def test_livekit_transcribes_before_and_after_its_microphone_was_muted(
    tmp_path: Path,
) -> None:
    uv, python = str(Path(sys.executable).with_name("uv")), str(tmp_path / "venv/bin/python")
    for command in (("venv", "venv"), ("pip", "install", "--python", python, *LIVEKIT)):
        status, _, errors = await run(tmp_path, uv, *command)
        assert status == 0, errors
    keys, speech = tmp_path / "keys.txt", tmp_path / "speech.raw"
    keys.write_text(f"{KEY}\n")
    speech.write_bytes(SPOKEN)
    script = str(Path(__file__).with_name("livekit_client.py"))
    async with serving(FakeModels(), whole=True, keys_file=str(keys)) as service:
        command = (python, script, str(service.port), KEY, str(speech))
        status, out, errors = await run(tmp_path, *command)
    assert status == 0, errors
    assert [("7" in line.split()) for line in out.splitlines()] == [True, True], out
