"""Which hosts may be called when a client names one: those of the public internet."""

import asyncio
import ipaddress
import socket

MAX_URL_CHARS = 2048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beside what Python 3.11 knows not to be global: protocol assignments, the metadata server of
# Azure, and the ways to write an IPv4 address as an IPv6 one (NAT64, Teredo, 6to4).
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",
        "168.63.129.16/32",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
    )
]


def is_public(address: Address) -> bool:
    """Whether an address is of the open internet: no private, local, metadata or group address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, none if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(place[0]) for *_, place in found]
