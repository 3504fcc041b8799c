"""Packages for tests of whole commands: tiny services and their clients.

Services run on the host's /usr (busybox, sh, the distribution's python3) unless they bring a root file system of their own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from conftest import Lab, Process
from samples import SLOW

HOST, CLIENT, NEIGHBOUR = "192.0.2.1", "192.0.2.2", "192.0.2.3"
BUSYBOX = "/usr/bin/busybox"
BRIDGE_CALLS = ("iptables", "ip6tables", "arptables")

Run = Callable[..., subprocess.CompletedProcess[Any]]

ECHO = """\
import sys
from _signal import SIG_IGN, SIGCHLD, signal
from _socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from posix import _exit, fork
signal(SIGCHLD, SIG_IGN)
server = socket(AF_INET, SOCK_STREAM)
server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
server.bind(("", int(sys.argv[2])))
server.listen(64)
while True:
    accepted, peer = server._accept()
    connection = socket(fileno=accepted)
    if fork() == 0:
        connection.sendall(f"{sys.argv[1]} {peer[0]}\\n".encode())
        while data := connection.recv(65536):
            connection.sendall(data)
        _exit(0)
    connection.close()
"""
"""Tells each client the service's name and the address that the client seems to have, then returns what it is sent.

The modules in C load in half the time of those that wrap them."""


def toml(value: Any) -> str:
    """Return a value as TOML writes it; strings of ASCII only."""
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items())
            + " }"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)


def package(
    lab: Lab,
    name: str,
    *command: str,
    files: dict[str, str] | None = None,
    **sections: dict[str, Any],
) -> str:
    """Write (or write again) a package whose entrypoint and arguments are ``command``; return its folder.

    ``sections`` are further tables of the manifest, and keys that are laid over ``package`` and ``binary``.
    """
    tables: dict[str, dict[str, Any]] = {
        "package": {"name": name, "version": "1.0.0"},
        "binary": {"entrypoint": command[0], "args": list(command[1:])},
    }
    for section, keys in sections.items():
        tables[section] = tables.get(section, {}) | keys
    lines = []
    for section, keys in tables.items():
        lines.append(f"[{section}]")
        lines += [
            f"{key if '.' not in key else json.dumps(key)} = {toml(value)}"
            for key, value in keys.items()
        ]
    folder = f"/tmp/packages/{name}"
    for path, text in {**(files or {}), "manifest.toml": "\n".join(lines) + "\n"}.items():
        there = lab.path(f"{folder}/{path}")
        if (
            not there.exists() or there.read_text() != text
        ):  # a new time of the same content would be a new package
            lab.write(f"{folder}/{path}", text, 0o755)
    return folder


def idle(lab: Lab, name: str, **sections: dict[str, Any]) -> str:
    """Write a service that does nothing, and ends at TERM; return its folder."""
    return package(lab, name, BUSYBOX, "sleep", "100000", **sections)


def echo(lab: Lab, name: str, port: int = 80, **sections: dict[str, Any]) -> str:
    """Write a service that answers on TCP ``port`` as `ECHO` says; return its folder."""
    return package(
        lab,
        name,
        "/usr/bin/python3",
        "-ISu",
        "/app/echo.py",
        name,
        str(port),
        files={"echo.py": ECHO},
        **sections,
    )


def echo_in(lab: Lab, netns: str, word: str) -> Process:
    """Start a server like that of `echo` in a namespace, on port 80, without niso."""
    return lab.popen("/usr/bin/python3", "-ISuc", ECHO, word, "80", netns=netns)


def on(network: str, **keys: Any) -> dict[str, Any]:
    return {"network": network, **keys}


def ask(lab: Lab, address: str, port: int, netns: str | None = None, seconds: int = 1) -> str:
    """Return what an echo service answers to somebody in ``netns``; empty if nobody answers in time."""
    done = lab.run(
        BUSYBOX,
        "nc",
        "-w",
        str(seconds),
        address,
        str(port),
        input="",
        netns=netns,
        check=False,
        timeout=10,
    )
    return str(done.stdout).strip()


def answer(lab: Lab, address: str, port: int, netns: str | None = None) -> str:
    """Return the answer of a service that may not listen yet, as `ask`; fail without one."""
    where = f"an answer of {address}:{port} to {netns or 'the host'}"
    return str(lab.wait_for(lambda: ask(lab, address, port, netns), 10, where))


def fetch(run: Run, address: str, *inside: str) -> str:
    """Return the page at ``address`` (``HOST[:PORT]``); empty if none comes within a second (times `SLOW`).

    ``run`` is `Lab.client` or alike. ``inside`` are words before the command, as ``exec NAME`` of an engine.
    """
    wait = str(max(1, int(SLOW)))
    words = ("/bin/busybox", "wget", "-q", "-T", wait, "-O", "-", f"http://{address}/index.html")
    return str(run(*inside, *words, check=False).stdout).strip()


def pings(lab: Lab, address: str, netns: str | None = None, seconds: int = 1) -> bool:
    """Return whether one ping from ``netns`` is answered in that time."""
    done = lab.run("ping", "-c1", f"-W{seconds}", address, netns=netns, check=False)
    return done.returncode == 0


def send(lab: Lab, netns: str | None, address: str, port: int, data: str = "x") -> None:
    """Send one UDP datagram from ``netns`` to an address of either family."""
    lab.run("python3", "-ISc", _SEND, address, str(port), data, netns=netns)


_SEND = """\
import socket, sys
address, port, data = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
socket.socket(family, socket.SOCK_DGRAM).sendto(data.encode(), (address, int(port)))
"""


def seen_source(lab: Lab, source: str | None, address: str, server: str = "client") -> str:
    """Return from which address a server in a namespace is asked by somebody in ``source``.

    ``address`` is the server's.
    """
    listener = lab.popen("python3", "-ISc", _SEES, address, netns=server)
    assert listener.stdout
    ask(lab, address, int(listener.stdout.readline()), source)
    return str(listener.communicate()[0]).strip()


_SEES = """\
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 0), family=family)
print(server.getsockname()[1], flush=True)
server.settimeout(60)
print(server.accept()[1][0])
"""


def listen(lab: Lab, proto: str, address: str, port: int, netns: str | None = None) -> Process:
    """Start a program of the host that listens on a port of ``tcp`` or ``udp``."""
    listener = lab.popen("python3", "-ISc", _LISTEN, proto, address, str(port), netns=netns)
    assert listener.stdout and listener.stdout.readline() == b"ready\n"
    return listener


_LISTEN = """\
import socket, sys, time
proto, address, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
own = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
if family == socket.AF_INET6:
    own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
own.bind((address, int(port)))
if proto == "tcp":
    own.listen()
print("ready", flush=True)
time.sleep(300)
"""


def counts(lab: Lab, name: str) -> dict[str, int]:
    """Return the counters of a service's kernel (nstat(8)): ``UdpNoPorts``, ``Icmp6InEchos`` …"""
    shown = lab.run(
        "nstat", "--json", "--ignore", "--noupdate", "--zeros", netns=f"niso-{name}"
    ).stdout
    counters: dict[str, int] = json.loads(shown)["kernel"]
    return counters


def elements_of(lab: Lab, name: str, table: str = "inet niso") -> list[dict[str, Any]]:
    """Return the elements of a set as ``nft -j`` lists them: ``val``, ``expires``, ``comment`` …"""
    shown = lab.run("nft", "-j", "list", "set", *table.split(), name).stdout
    [listed] = [item["set"] for item in json.loads(shown)["nftables"] if "set" in item]
    return [element["elem"] for element in listed.get("elem", ())]


def filter_bridged(lab: Lab, value: int) -> None:
    """Set whether frames that any bridge switches go through iptables, as other programs of the host may."""
    calls = (f"net.bridge.bridge-nf-call-{name}={value}" for name in BRIDGE_CALLS)
    lab.run("sysctl", "-qw", *calls)


def set_resolver(lab: Lab, text: str) -> None:
    """Mount a file of the lab's own over its host's /etc/resolv.conf."""
    lab.write("/tmp/resolv.conf", text)
    lab.run("mount", "--bind", "/tmp/resolv.conf", "/etc/resolv.conf")


def answer_names(lab: Lab) -> Process:
    """Answer each DNS query to the client with REFUSED, and print a line for each."""
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.bind(('{CLIENT}', 53)); print('ready', flush=True)\n"
        "while True: q, a = s.recvfrom(512); s.sendto(q[:2] + b'\\x81\\x05' + q[4:], a);"
        " print('asked', flush=True)"
    )
    server = lab.popen("python3", "-ISuc", script, netns="client")
    assert server.stdout and server.stdout.readline() == b"ready\n"
    return server


def refuse_names(lab: Lab) -> None:
    """Set a resolver that refuses at once (ICMP port unreachable): an unknown name costs no time-out."""
    set_resolver(lab, f"nameserver {CLIENT}\n")


def subnets(lab: Lab) -> dict[str, str]:
    """Return each network's subnets as ``net list`` shows them."""
    rows = json.loads(lab.niso("net", "list", "--json").stdout)
    return {row["name"]: row["subnet"] for row in rows}


def ps(lab: Lab, name: str) -> dict[str, Any]:
    """Return a service's row of ``niso ps``."""
    rows = json.loads(lab.niso("ps", "--json").stdout)
    return dict(next(row for row in rows if row["service"] == name))


def inspect(lab: Lab, name: str) -> dict[str, Any]:
    return dict(json.loads(lab.niso("inspect", name).stdout))


def pid_of(lab: Lab, name: str) -> int:
    """Return the pid in the lab of a service's PID 1."""
    pid = inspect(lab, name)["pid"]
    assert isinstance(pid, int)
    return pid


def process_below(lab: Lab, pid: int) -> int:
    """Return the pid in the lab of a service's own process, the first child of its PID 1."""
    return int(lab.run("cat", f"/proc/{pid}/task/{pid}/children").stdout.split()[0])


def environment_of(lab: Lab, pid: int) -> list[str]:
    """Return the environment of the service below the PID 1 ``pid``."""
    return lab.run("cat", f"/proc/{process_below(lab, pid)}/environ").stdout.split("\0")


def namespace(lab: Lab, name: str) -> int:
    """Return the inode of the network namespace that has a service's name."""
    return lab.path(f"/run/netns/niso-{name}").stat().st_ino


def address(lab: Lab, name: str) -> str:
    """Return the address that the kernel has on the service's eth0."""
    return str(inside(lab, name, "eth0")["addr_info"][0]["local"])


def inside(lab: Lab, name: str, link: str) -> dict[str, Any]:
    """Return a link inside a service's namespace as ``ip -j address`` shows it."""
    return lab.ip_json("-4", "address", "show", "dev", link, netns=f"niso-{name}")[0]


def refused(lab: Lab, *argv: str, status: int = 1, **options: Any) -> str:
    """Return the errors of a niso command; it must fail with ``status`` and in niso's words."""
    done = lab.niso(*argv, check=False, **options)
    lines = str(done.stderr).splitlines()
    assert done.returncode == status, (argv, done.returncode, done.stdout, done.stderr)
    assert lines and all(line.startswith(("niso: ", "  hint: ", "    ")) for line in lines), (
        done.stderr
    )
    assert "Traceback" not in done.stderr and "bug in niso" not in done.stderr
    return str(done.stderr)


def busybox_rootfs(lab: Lab, folder: str) -> str:
    """Make a root file system of busybox alone, with users of its own; return ``folder``."""
    for below in ("bin", "etc", "var", "home/web"):
        lab.path(f"{folder}/{below}").mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, lab.path(f"{folder}/bin/busybox"))
    for name in (
        "sh",
        "cat",
        "id",
        "sleep",
        "hostname",
        "nslookup",
        "ping",
        "ls",
        "nc",
        "env",
        "touch",
        "wget",
    ):
        lab.path(f"{folder}/bin/{name}").symlink_to("busybox")
    lab.path(f"{folder}/etc/passwd").write_text(
        "root:x:0:0::/:/bin/sh\nweb:x:33:44::/home/web:/bin/sh\n"
    )
    lab.path(f"{folder}/etc/group").write_text("root:x:0:\nweb:x:44:\nextra:x:55:web\n")
    return folder


UNFILTER = """\
import socket, struct, sys
from niso.kernel.proc_sys import _bpf
_bpf(9, struct.pack("=IIII16x", socket.if_nametoindex(sys.argv[1]), 0, int(sys.argv[2]), 8))
"""


def unfilter(lab: Lab, bridge: str, place: int = 47) -> None:
    """Remove the filter of packets to a bridge, or from it (``place`` 46), as BPF_PROG_DETACH does."""
    lab.run(sys.executable, "-c", UNFILTER, bridge, str(place))
