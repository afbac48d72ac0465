"""What a server does with frames that it must not assemble."""

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def negotiated_extensions(url: str) -> list[str]:
    """The names of the extensions that the server grants a client that offers compression."""
    async with connect(url, compression="deflate") as socket:
        return [extension.name for extension in socket.protocol.extensions]


async def close_code_for_announcing(url: str, size: int) -> int | None:
    """The close code when a client sends the header of a frame of ``size`` bytes and no more."""
    final_binary, masked_with_8_bytes_of_size = 0x82, 0xFF
    header = bytes([final_binary, masked_with_8_bytes_of_size])
    mask = bytes(4)
    async with connect(url, compression=None) as socket:
        socket.transport.write(header + size.to_bytes(8, "big") + mask)
        await socket.wait_closed()
        return socket.close_code


async def echoed_bytes(url: str, size: int) -> int:
    """The size of what an echo server sends back of a message."""
    async with connect(url, compression=None, max_size=None) as socket:
        try:
            await socket.send(bytes(size))
            return len(await socket.recv())
        except ConnectionClosed as closed:
            raise AssertionError(f"closed: {closed}") from closed
