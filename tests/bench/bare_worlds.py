"""Measure the bare kernel: `ip` and `nft` without any bookkeeping, and packets without translation."""

from __future__ import annotations

from worlds import HOST, LOWEST, SERVED, SPARE, World, run, timed, write

_CHAINS = {
    "tracked": "type filter hook forward priority 0; ct state invalid drop",
    "translated": "type nat hook prerouting priority dstnat; "
    f"meta l4proto {{ tcp, udp }} th dport {LOWEST} dnat ip to 10.99.0.2:{SERVED}",
}
"""The least that sees connections, and the least that publishes a port."""


class Plain(World):
    """The client is routed to the service, as fast as this machine can; or comes to it by one DNAT rule."""

    ADDRESS = "10.99.0.2"

    def fill(self, ports: int) -> float:
        run("ip", "netns", "add", "service")
        run("ip", "link", "add", "br0", "type", "bridge")
        run(
            "ip",
            "link",
            "add",
            "v0",
            "master",
            "br0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            "service",
        )
        run("ip", "address", "add", "10.99.0.1/24", "dev", "br0")
        run("ip", "-n", "service", "address", "add", f"{self.ADDRESS}/24", "dev", "eth0")
        for words in (["link", "set", "br0", "up"], ["link", "set", "v0", "up"]):
            run("ip", *words)
        run("ip", "-n", "service", "link", "set", "eth0", "up")
        run("ip", "-n", "service", "route", "add", "default", "via", "10.99.0.1")
        run("ip", "-n", "client", "route", "add", "10.99.0.0/24", "via", HOST)
        write("/proc/sys/net/ipv4/ip_forward", "1")
        self._rules = "routed"
        return 0.0

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", "service"]

    def rate(self, proto: str, to: str, ms: int) -> float:
        """``to`` is "routed" (no netfilter at all), "tracked" (one rule, that looks at connection tracking) or "translated"."""
        if self._rules != to:
            if self._rules != "routed":
                run("nft", "delete", "table", "inet", "least")
            if to != "routed":
                run("nft", f"table inet least {{ chain c {{ {_CHAINS[to]}; }}; }}")
            self._rules = to
        address, port = (HOST, LOWEST) if to == "translated" else (self.ADDRESS, SERVED)
        return self.load(proto, address, port, ms)


class Batch(World):
    """`ip -batch` for the namespace and what is in it, and `nft -f` for a port in a map: the fewest commands that do it."""

    AT_ONCE = 100

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "address", "add", "10.98.0.1/20", "dev", "br0")
        run("ip", "link", "set", "br0", "up")
        publish = "map publish { type inet_service : ipv4_addr . inet_service; }"
        chain = "chain pre { type nat hook prerouting priority dstnat; dnat ip to tcp dport map @publish; }"
        run("nft", "-f", "-", input=f"table ip bench {{\n{publish}\n{chain}\n}}\n")
        write("/proc/sys/net/ipv4/ip_forward", "1")

    def grow_by(self, numbers: list[int]) -> None:
        for number in numbers:
            self._attach(
                f"b{number:04}",
                f"10.98.{(number + 2) // 256}.{(number + 2) % 256}",
                10_000 + number,
            )

    def network(self) -> dict[str, float]:
        added = timed(lambda: self._attach("extra", "10.98.15.1", SPARE))
        return {"attach": added, "detach": timed(lambda: self._detach("extra", SPARE))}

    def _attach(self, name: str, address: str, port: int) -> None:
        link = f"v-{name}"
        run(
            "ip", "-batch", "-",
            input=f"netns add {name}\nlink add {link} type veth peer name eth0 netns {name}\nlink set {link} master br0 up\n",
        )  # fmt: skip
        inside = f"address add {address}/20 dev eth0\nlink set eth0 up\nlink set lo up\nroute add default via 10.98.0.1\n"
        run("ip", "-n", name, "-batch", "-", input=inside)
        run("nft", "-f", "-", input=f"add element ip bench publish {{ {port} : {address} . 80 }}\n")

    def _detach(self, name: str, port: int) -> None:
        run("nft", "-f", "-", input=f"delete element ip bench publish {{ {port} }}\n")
        run("ip", "-batch", "-", input=f"link delete v-{name}\nnetns delete {name}\n")
