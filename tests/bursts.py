"""Many handshakes and requests at once."""

import asyncio
from collections import Counter

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

TIMEOUT_S = 120.0


async def answers_to_a_burst(service: str, sockets: int, requests: int) -> Counter[str]:
    """How often each answer came: a status, and whether it has Retry-After.

    ``service`` is a base URL. All sockets stay open until every answer is there.
    """
    opened: list[ClientConnection] = []
    url = service.replace("http", "ws", 1) + "/v1/ws"

    async def handshake() -> str:
        try:
            opened.append(await connect(url, open_timeout=TIMEOUT_S, compression=None))
        except InvalidStatus as rejected:
            return _answer(rejected.response.status_code, rejected.response.headers)
        return "101"

    async def get(client: httpx.AsyncClient) -> str:
        response = await client.get(f"{service}/v1/models")
        return _answer(response.status_code, response.headers)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S) as client:
        answers = await asyncio.gather(
            *(handshake() for _ in range(sockets)), *(get(client) for _ in range(requests))
        )
    await asyncio.gather(*(socket.close() for socket in opened))
    return Counter(answers)


def _answer(status: int, headers: object) -> str:
    return f"{status} with Retry-After" if "retry-after" in headers else str(status)  # type: ignore[operator]
