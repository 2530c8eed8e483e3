"""Which addresses a push may reach, and how a host's name becomes one of them.

A name is resolved once. What is checked is what is connected to: a second
look-up could be answered with another address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from invocations_app.delivery.errors import AddressNotAllowed

_IPV4_BEHIND_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Resolved:
    """An address as a socket takes it."""

    family: int
    sockaddr: tuple[Any, ...]


def is_public(address: str) -> bool:
    """Return whether an address is one of the public internet, for what it says and for what it wraps.

    Args:
        address: An IPv4 or IPv6 address; an IPv6 one may carry another of IPv4.
    """
    return all(_is_global(part) for part in _parts(ipaddress.ip_address(address)))


async def resolve(host: str, port: int, *, allow_private: bool) -> list[Resolved]:
    """Return the addresses of a host, if every one of them may be reached.

    Args:
        host: Name or address.
        port: TCP port.
        allow_private: Whether any address may be reached.

    Raises:
        AddressNotAllowed: If one of them is not public.
        OSError: If there is none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    resolved = list(dict.fromkeys(Resolved(family, sockaddr) for family, _, _, _, sockaddr in found))
    # A name with a public and a private address is refused whole: nobody needs one but who tries something.
    if not allow_private and not all(is_public(item.sockaddr[0]) for item in resolved):
        raise AddressNotAllowed
    return resolved


async def connect(resolved: list[Resolved], *, seconds: float) -> socket.socket:
    """Return a socket that is connected to the first address that answers.

    Args:
        resolved: The addresses, in order.
        seconds: Time for all of them; each gets its part.

    Raises:
        OSError: If none answers.
    """
    problem: OSError = OSError("no address")
    for item in resolved:
        try:
            async with asyncio.timeout(seconds / len(resolved)):
                return await _connect(item)
        except OSError as error:
            problem = error
    raise problem


async def _connect(item: Resolved) -> socket.socket:
    connection = socket.socket(item.family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, item.sockaddr)
    except BaseException:
        connection.close()
        raise
    return connection


def _parts(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Iterator[Any]:
    """Yield an address and every IPv4 address that routers or kernels may take it for."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _IPV4_BEHIND_NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        yield from (item for item in wrapped if item is not None)


def _is_global(address: Any) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped is not None or address in _IPV4_BEHIND_NAT64
    ):
        # Nothing but the IPv4 address in it, which is looked at by itself.
        return True
    return address.is_global and not (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or getattr(address, "is_site_local", False)
    )
