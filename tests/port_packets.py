"""Work out which packets a port takes, and draw small ports."""

from __future__ import annotations

from hypothesis import strategies as st

from niso.plan.records import PortMapping

HOST_IPS = ("", "0.0.0.0", "::", "127.0.0.1", "192.0.2.1", "2001:db8::1")


@st.composite
def small_ports(
    draw: st.DrawFn, protocols: tuple[str, ...] = ("tcp", "udp"), free: bool = False
) -> PortMapping:
    """A port or a range within 10 to 19."""
    count = draw(st.integers(1, 4))
    return PortMapping(
        draw(st.sampled_from(HOST_IPS)),
        0 if free and draw(st.booleans()) else draw(st.integers(10, 20 - count)),
        draw(st.integers(10, 16)),
        draw(st.sampled_from(protocols)),
        count,
    )


def takes(port: PortMapping) -> set[tuple[str, str, int]]:
    """(protocol, "0.0.0.0", "::" or the address, host port) of each place in the kernel's maps that an entry needs."""
    if not port.host_port:
        return set()
    where = {"": ("0.0.0.0", "::")}.get(port.host_ip, (port.host_ip,))
    return {
        (port.proto, at, number)
        for at in where
        for number in range(port.host_port, port.host_port + port.count)
    }


ADDRESSES = {4: ("127.0.0.1", "192.0.2.1", "203.0.113.9"), 6: ("2001:db8::1", "fd00::9")}


def packets(port: PortMapping) -> set[tuple[str, str, int]]:
    """(destination, protocol, port) of all packets that could be for it."""
    wide = {"": (4, 6), "0.0.0.0": (4,), "::": (6,)}.get(port.host_ip)
    to = [address for family in wide for address in ADDRESSES[family]] if wide else [port.host_ip]
    return {(address, port.proto, port.host_port + n) for address in to for n in range(port.count)}
