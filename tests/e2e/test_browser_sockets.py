"""Sockets that a page in a real browser opens with an API key."""

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from api.auth.client_secrets import Grant, issue
from api.auth.key_file import KeyFile
from tests.unit.fake_models import FakeModels
from tests.unit.live_service import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATHS = ("/v1/ws", "/ws", "/vosk", "/v1/realtime")
KEY = "0123456789abcdef"
WITH_KEY = [f"openai-insecure-api-key.{KEY}"]
PAGE = """<!doctype html><script>
const open = (path, offered) => new Promise((done) => {
  const socket = new WebSocket("ws://127.0.0.1:%d" + path, offered);
  socket.onopen = () => { done(socket.protocol); socket.close(1000); };
  socket.onclose = () => done(null);
});
(async () => {
  const found = [];
  for (const [path, offered] of %s) found.push(await open(path, offered));
  await fetch("/", { method: "POST", body: JSON.stringify(found) });
})();
</script>"""

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


async def opened_in_chromium(folder: Path, port: int, sockets: list[tuple[str, list[str]]]) -> Any:
    """The sub-protocol with which a page opened each socket; None where it failed."""
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    page = (PAGE % (port, json.dumps(sockets))).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if head.startswith("post"):
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            found.set_result(json.loads(await reader.readexactly(length)))
        headers = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n"
        writer.write(f"{headers}Connection: close\r\n\r\n".encode() + page)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}")
    debugging = "--remote-debugging-port=0"  # without it the browser ends with the page
    assert CHROMIUM is not None
    silent = asyncio.subprocess.DEVNULL
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM, *options, debugging, address, stdout=silent, stderr=silent
    )
    try:
        async with asyncio.timeout(120):
            return await found
    finally:
        browser.terminate()
        await browser.wait()
        server.close()


async def test_a_page_opens_every_socket_with_a_key_and_a_protocol_beside_it(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{KEY}\n")
    wanted = [(path, ["speechgraph", *WITH_KEY]) for path in PATHS]
    wanted.append(("/v1/ws", WITH_KEY))
    wanted.append(("/v1/ws", ["speechgraph", "openai-insecure-api-key.wrong"]))
    parent = KeyFile(keys).find(KEY.encode())
    for origin in ("", "https://another.example"):
        secret = issue(parent, Grant("/v1/realtime", int(time.time()) + 600, origin, {}))
        wanted.append(("/v1/realtime", ["realtime", f"openai-insecure-api-key.{secret}"]))
    async with serving(FakeModels(), whole=True, keys_file=str(keys)) as service:
        found = await opened_in_chromium(tmp_path / "profile", service.port, wanted)
    assert found == ["speechgraph"] * len(PATHS) + [None, None, "realtime", None]
