"""Where notices may be sent: not to link-local or metadata addresses, nor to loopback by a name that hides it.

What is connected to is the very address that was judged, so that a name can't answer differently a moment later.
"""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from shared.owners import is_this_machine

Address: TypeAlias = IPv4Address | IPv6Address
Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]

_REFUSED: Networks = tuple(
    ip_network(network)
    for network in (
        *("0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's
        "192.0.0.0/24",  # Oracle's metadata lie in it
        *("::/128", "fe80::/10", "fd00:ec2::/32", "ff00::/8"),
    )
)
_NAT64 = ip_network("64:ff9b::/96")


class AddressRefused(OSError):
    """Nothing may be sent there, unless the channel's ``allow_addresses`` lists it."""


class Guard:
    """What one channel may reach."""

    def __init__(self, allow_addresses: Sequence[str] = ()) -> None:
        self._allowed: Networks = tuple(ip_network(network) for network in allow_addresses)

    def check_host(self, host: str) -> None:
        """Judge a host that is an address; a name is judged when it is resolved. Raises ``AddressRefused``."""
        try:
            address = ip_address(host)
        except ValueError:
            if ":" in host or host.replace(".", "").isdigit():  # 2852039166 would connect to 169.254.169.254
                raise AddressRefused(f"{host} is no address in its usual form") from None
            return
        self.passed(host, [address])

    def passed(self, host: str, addresses: Sequence[Address]) -> list[Address]:
        """Those of a host's addresses that may be connected to. Raises ``AddressRefused`` when none is left."""
        left = [address for address in addresses if self._may_reach(address, is_this_machine(host))]
        if not left:
            shown = ", ".join(str(address) for address in addresses[:3])
            raise AddressRefused(
                f"{host} ({shown}) is link-local, a metadata service's or loopback; see allow_addresses"
            )
        return left

    def resolve(self, host: str, port: int) -> list[tuple[str, int]]:
        """Addresses to connect to. Blocks: for threads. Raises ``OSError``, of which ``AddressRefused`` is one."""
        self.check_host(host)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        return [(str(address), port) for address in dict.fromkeys(self.passed(host, addresses))]

    def _may_reach(self, address: Address, named_loopback: bool) -> bool:
        seen = {address, *_inner(address)}
        if any(one in network for one in seen for network in self._allowed if network.version == one.version):
            return True
        if any(one.is_loopback for one in seen) and not named_loopback:
            return False
        return not any(one in network for one in seen for network in _REFUSED if network.version == one.version)


def _inner(address: Address) -> tuple[Address, ...]:
    """IPv4 addresses that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return ()
    nat64 = IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
    return tuple(inner for inner in (address.ipv4_mapped, address.sixtofour, nat64) if inner is not None)
