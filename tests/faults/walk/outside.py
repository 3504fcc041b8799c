"""What other programs do to niso's objects, each by a shell command in the lab."""

from __future__ import annotations

from walk.model import World

FLAWS = {
    "link": 'ip link delete "$port"',
    "port off": 'ip link set "$port" nomaster',
    "port down": 'ip link set "$port" down',
    "address": 'ip -n "niso-$name" address flush dev eth0 scope global',
    "bridge address": 'ip address flush dev "$bridge" scope global',
    "bridge": 'ip link delete "$bridge"',
    "route": 'ip -n "niso-$name" route delete default',
    "rules": "nft flush ruleset",
    "rule": "nft delete chain inet niso postrouting",
    "ports": "nft delete element bridge niso ports '{' \"\\\"$port\\\"\" '}'",
    "foreign element": "nft add element inet niso publish_any4 '{' tcp . 9999 : 10.99.1.2 . 80 '}'",
    "hosts": 'echo 10.9.9.9 intruder >> "$(ls /run/niso/hosts/*/hosts | head -n 1)"',
    "hosts gone": 'rm "$(ls /run/niso/hosts/*/hosts | head -n 1)"',
    "sysctl": "sysctl -qw net.ipv4.ip_forward=0",
    "loopback": 'ip -n "niso-$name" link set lo down',
    "neighbour": 'ip neighbour replace 10.99.1.77 lladdr 02:00:00:00:00:01 dev "$bridge" nud permanent',
    "attached": 'ip link add tap0 type veth peer name tap1; ip link set tap0 master "$bridge"',
    "conmon": 'kill -9 $(pgrep -x -f "/usr/bin/conmon .* -n $name .*")',
    "both": 'kill -9 $(pgrep -x -f "/usr/bin/conmon .* -n $name .*") $pid',
}
"""What `niso net check` must report and `niso net repair` mend."""
HARMLESS = {"process": "kill -9 $pid", "process ends": "kill -TERM $pid"}
"""What niso mends by itself."""
KINDS = (*FLAWS, *HARMLESS)
CLEAN_UP = {"attached": "ip link delete tap0"}
"""After `niso net repair`, which only takes such a link off the bridge."""


def possible(world: World, kind: str, name: str) -> bool:
    """Whether there is something that this would change."""
    it = world.services.get(name)
    if it is None or not it.active:
        return False
    on_bridge = bool(it.manifest.on)
    if kind in ("conmon", "both", *HARMLESS):
        return True
    if kind == "loopback":
        return it.manifest.provides
    if kind in ("hosts", "hosts gone"):
        return any(world.services[one].manifest.provides for one in world.active())
    if kind == "foreign element":
        return bool(world.networks)
    return on_bridge


PORT = """\
import json, subprocess, sys
def links(*where): return json.loads(subprocess.check_output(["ip", "-j", *where, "link"]))
peer = next(link["link_index"] for link in links("-n", sys.argv[1]) if link["ifname"] == "eth0")
print(next(link["ifname"] for link in links() if link["ifindex"] == peer))
"""


def script(kind: str, name: str, network: str, pid: int) -> str:
    """Return the shell command. ``network`` is the service's first, ``pid`` its process."""
    text = (FLAWS | HARMLESS)[kind]
    find = f"port=$(python3 -ISc '{PORT}' niso-{name}); bridge=niso-{network}" if network else ""
    return f"name={name}; pid={pid}\n{find}\n{text}"
