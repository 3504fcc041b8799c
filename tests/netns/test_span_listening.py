"""Test what somebody sees who listens on the bridge of a network that spans hosts (tcpdump)."""

from __future__ import annotations

from many_hosts import Service, fill, network, underlay
from services import echo, filter_bridged, on, pings
from wire import Wire

API = Service("api", "a", ("10.99.1.2", "fd00:99:1::2"))
DB = Service("db", "b", ("10.99.1.3", "fd00:99:1::3"))


def test_answers_of_another_host_are_seen_on_the_bridge() -> None:
    with underlay("a", "b") as hosts:
        for host in hosts:
            network(host)
            fill(host, hosts, [API, DB], 4)
            own = next(service for service in (API, DB) if service.host == host.name)
            host.lab.niso("activate", echo(host.lab, own.name, network=on("backend")))
        lab = hosts[0].lab
        filter_bridged(lab, 0)
        lab.run("ip", "link", "set", "niso-backend", "promisc", "on")
        with Wire(lab) as wire:
            bridge = wire.link(None, "niso-backend")
            for address in DB.addresses:
                lab.wait_for(lambda to=address: pings(lab, to, "niso-api"), 10)
            mac = bytes.fromhex(DB.mac.replace(":", ""))
            came = {frame[12:14] for frame in bridge.look() if frame[6:12] == mac}
        assert came == {b"\x08\x00", b"\x86\xdd"}
