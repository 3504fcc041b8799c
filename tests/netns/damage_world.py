"""Provide a host with two services, one in the middle of a transfer while the other is damaged."""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import Any

import snapshots
from conftest import TESTS, Lab, Process
from services import CLIENT, HOST, ask, echo, inspect, on, unfilter

SUBNETS = {"backend": ("10.99.1.0/24", "fd00:1::/64"), "extra": ("10.99.2.0/24", "fd00:2::/64")}
METHODS = ("kill_conmon", "leave_cgroup", "offload", "sql", "stop_conmon", "unfilter")
"""Methods of World that damages.txt calls."""
ASKED = {
    "mac": "$(ip -n niso-api -br link show eth0 | awk '{print $3}')",
    "bridge_mac": "$(cat /sys/class/net/niso-backend/address)",
    "peer_port": "$(ip -o link | grep -o 'nipeer-[0-9a-f]*' | head -n 1)",
    "handle": "$(nft -a list chain inet niso forward | sed -n 's/.*# handle //p' | tail -n 1)",
}
"""Variables of commands in damages.txt that the shell evaluates."""

FORWARDING6 = "net/ipv6/conf/uplink0/force_forwarding"
"""The sysctl by which uplink0 forwards IPv6."""
if not os.path.exists("/proc/sys/net/ipv6/conf/default/force_forwarding"):  # before Linux 6.17
    FORWARDING6 = "net/ipv6/conf/all/forwarding"


class World:
    """``api`` on backend and extra, published on 8080; ``peer`` on backend, published on 9090, which the transfer goes by."""

    def __init__(self, lab: Lab, dual: bool) -> None:
        self.lab = lab
        self.dual = dual
        for name, subnets in SUBNETS.items():
            wanted = [word for subnet in subnets[: 1 + dual] for word in ("--subnet", subnet)]
            lab.niso("net", "create", name, *wanted)
        inner = ("--subnet", "10.99.3.0/24", *(("--subnet", "fd00:3::/64") if dual else ()))
        lab.niso("net", "create", "inner", "--internal", *inner)
        api = {"networks": ["backend", "extra"], "ports": ["8080:80", ":81"]}
        api["bandwidth"] = {"in": "1G", "out": "1G"}
        peer = on("backend", ports=["9090:80"])
        raw = {"capabilities": ["NET_RAW"]}
        services = echo(lab, "api", network=api, isolation=raw), echo(lab, "peer", network=peer)
        lab.niso("activate", *services)
        self.id: str = lab.ip_json("link", "show", "niso-backend")[0]["ifalias"]
        lab.wait_for(lambda: ask(lab, HOST, 9090, "client") == f"peer {CLIENT}", 10, "peer")
        self._begin_transfer()
        self._before: snapshots.Snapshot | None = None

    def _begin_transfer(self) -> None:
        script = (TESTS / "netns" / "transfer.py").read_text()
        self.transfer: Process = self.lab.popen(
            "python3", "-ISuc", script, HOST, "9090", netns="client", stdin=-1
        )
        assert self.transfer.stdout
        assert self.transfer.stdout.readline() == f"peer {CLIENT}\n".encode()

    @cached_property
    def port(self) -> str:
        """The host's end of api's eth0 by what niso says: by its activation, so the same when it is made anew."""
        return str(inspect(self.lab, "api")["endpoints"][0]["host_interface"])

    @property
    def pid(self) -> str:
        return str(inspect(self.lab, "api")["pid"])

    # --- niso ---------------------------------------------------------------------------------------------------------

    def niso(self, *argv: str) -> tuple[int, str, str]:
        """Exit status, stdout, stderr of one command."""
        done = self.lab.niso(*argv, check=False)
        assert "Traceback" not in done.stderr and "bug in niso" not in done.stderr, done
        return done.returncode, done.stdout, done.stderr

    def check(self, *names: str) -> list[dict[str, str]]:
        status, out, err = self.niso("net", "check", "--json", *names)
        found: list[dict[str, str]] = json.loads(out)
        assert status == (1 if found else 0), err
        return found

    def before(self) -> snapshots.Snapshot:
        """All that is there while nothing is damaged."""
        if self._before is None:
            assert self.check() == []
            self._before = snapshots.take(self.lab)
        return self._before

    def start_over(self) -> None:
        """As well as it can be after a test that failed in the middle."""
        self.niso("net", "repair")
        self.forget_before()
        if self.transfer.poll() is not None:
            self._begin_transfer()
        self.tell("go")

    def forget_before(self) -> None:
        self._before = None

    # --- the transfer -------------------------------------------------------------------------------------------------

    def tell(self, word: str) -> int:
        """Say a word to the transfer; how many bytes have come back whole."""
        assert self.transfer.stdin and self.transfer.stdout
        self.transfer.stdin.write(word.encode() + b"\n")
        line = self.transfer.stdout.readline()
        assert line, (
            f"the transfer has ended: {self.transfer.stderr.read().decode() if self.transfer.stderr else ''}"
        )
        return int(line)

    def assert_transfer_goes_on(self) -> None:
        was = self.tell("go")
        self.lab.wait_for(lambda: self.tell("count") > was, 10, "more bytes of the transfer")

    # --- damage -------------------------------------------------------------------------------------------------------

    def run(self, *argv: str, **options: Any) -> str:
        return str(self.lab.run(*argv, **options).stdout)

    def harm(self, commands: tuple[str, ...]) -> None:
        """Carry out commands of damages.txt."""
        for text in commands:
            name, _, rest = text.partition(" ")
            if name in METHODS:
                getattr(self, name)(*([rest] if name == "sql" else rest.split()))
                continue
            script = text.replace("$port", self.port).replace("$id", self.id)
            setup = [f"{key}={value}; " for key, value in ASKED.items() if f"${key}" in text]
            self.run("sh", "-ec", "".join(setup) + script)

    def unfilter(self, bridge: str, place: str) -> None:
        unfilter(self.lab, bridge, int(place))

    def offload(self, netns: str, link: str) -> None:
        """Let a link leave checksums to others, as ``ethtool -K LINK tx on``."""
        code = (
            "import array, fcntl, socket, struct, sys; v = array.array('I', [0x17, 1]);"
            " s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); fcntl.ioctl(s, 0x8946,"
            " struct.pack('16sP16x', sys.argv[1].encode(), v.buffer_info()[0]))"
        )
        self.run("python3", "-ISc", code, link, netns=netns)

    def sql(self, *statements: str) -> None:
        """Change the store as nobody should: without its foreign keys."""
        code = "import sqlite3, sys; d = sqlite3.connect('/var/lib/niso/state.db'); [d.execute(s) for s in sys.argv[1:]]; d.commit()"
        self.run("python3", "-ISc", code, *statements)

    def kill_conmon(self, process: str = "") -> None:
        """Kill api's conmon, and with ``process`` at the same time the service itself."""
        conmon = self.run("pgrep", "-x", "-f", "/usr/bin/conmon .* -n api .*").split()
        self.run("kill", "-9", *conmon, *([self.pid] if process else []))

    def stop_conmon(self) -> list[str]:
        """Have api's conmon, which is returned, see nothing any more, then kill the service."""
        conmon = self.run("pgrep", "-x", "-f", "/usr/bin/conmon .* -n api .*").split()
        pid = self.pid
        self.run("kill", "-STOP", *conmon)
        self.run("kill", "-9", pid)
        return conmon

    def leave_cgroup(self) -> None:
        """Move api out of its cgroups, which go then."""
        # with cgroup v2, the lab's top cgroup has controllers and therefore no processes
        moved = 'for pid in $(cat "$each"/cgroup.procs); do echo "$pid" > "$to"/cgroup.procs; done'
        self.run(
            *("sh", "-c"),
            'for each in /sys/fs/cgroup/niso-*/api /sys/fs/cgroup/*/niso-*/api; do test -d "$each" || continue; '
            'to=${each%/niso-*}; test ! -d "$to"/init || to=$to/init; '
            f'{moved}; rmdir "$each"; done',
        )
