"""What only a real machine shows: installation, reboots, power failures, other firewalls, upgrades.

`./dev test-vm` runs these tests. They start from a saved machine with niso's Debian package and the
stack SHOP, whose services are enabled. All limits are in seconds of an idle, fast machine.
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu import CACHE, ROOT, SLOW, SUITES, Machine, accelerator, make_image, overlay
from user_mode import UserModeMachine, connect, make_disk

from niso.kernel import proc_sys

NAMES = os.environ.get("NISO_VM", "trixie").split()
USER_MODE = ("uml", "uml-forky")  # machines with the user-mode kernel
CUTS = int(os.environ.get("NISO_VM_CUTS", "4"))  # power failures of each kind of command
# The other machine is on a link that existed before niso, with a route to niso's networks.
OTHER = """
ip netns add other
ip link add other0 type veth peer name eth0 netns other
ip addr add 192.0.2.1/24 dev other0
ip link set other0 up
ip -n other link set lo up
ip -n other addr add 192.0.2.2/24 dev eth0
ip -n other link set eth0 up
ip -n other route add 10.99.0.0/16 via 192.0.2.1
"""
MANIFEST = """
[package]
name = "{name}"
version = "1.0.0"
[binary]
entrypoint = "/usr/bin/busybox"
args = ["httpd", "-f", "-p", "{port}", "-h", "/etc"]
"""
SHOP = {
    "stack.toml": """
[stack]
name = "shop"
[networks]
backend = { subnet = "10.99.1.0/24" }
[[service]]
name = "db"
package = "./db"
networks = ["backend"]
[[service]]
name = "api"
package = "./api"
networks = ["backend"]
ports = ["8080:8080"]
[[service]]
name = "guest"
package = "./guest"
networks = ["backend"]
""",
    "db/manifest.toml": MANIFEST.format(name="db", port=5432)
    + '[network.policy]\nallow_from = ["api:5432/tcp"]\n',
    "api/manifest.toml": MANIFEST.format(name="api", port=8080)
    + '[isolation.resources]\nmemory_max = "48M"\n',
    "guest/manifest.toml": MANIFEST.format(name="guest", port=80),
}
# Connect again and again, and write each result: "open" if something answered, else "closed".
PROBE = """
import socket, sys, time
log, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(log, "w", buffering=1) as out:
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            result = "open"
        except OSError as error:
            result = f"closed {error.errno}"
        out.write(f"{time.monotonic():.2f} {result}\\n")
        time.sleep(0.05)
"""


def debian_package() -> Path:
    """Return the package that `./dev deb` has built."""
    return next((ROOT / ".cache/deb").glob("niso_*_all.deb"))


def install(machine: Machine) -> None:
    """Install niso and the probe, start and enable the shop."""
    machine.put(debian_package(), "/root/niso.deb")
    machine.run("dpkg", "-i", "/root/niso.deb", limit=60)
    for name, text in SHOP.items():
        machine.sh(f"mkdir -p $(dirname /root/shop/{name})")
        machine.run("sh", "-c", f"cat > /root/shop/{name}", text=text)
    machine.run("sh", "-c", "cat > /root/probe.py", text=PROBE)
    machine.sh(OTHER)
    machine.run("niso", "stack", "up", "/root/shop", limit=40)
    machine.run("niso", "enable", "db", "api", "guest", limit=40)


def prepare(name: str) -> tuple[Path, tuple[str, ...]]:
    """Return the disk of a machine with the shop, and QEMU's options.

    QEMU's disk has the snapshot `ready` of the running machine. The disk is made again if niso's
    package, the release's disk or the shop has changed.
    """
    suite = SUITES[name][0]
    make_image(suite)
    options = accelerator(suite) if name not in USER_MODE else ("", "the kernel in user mode")
    image = CACHE / f"{suite}.img"
    made_of = debian_package().read_bytes() + repr((options, SHOP, image.stat().st_mtime)).encode()
    kind = ".img" if name in USER_MODE else ".qcow2"
    disk = CACHE / f"{name}-{hashlib.sha256(made_of).hexdigest()[:12]}{kind}"
    if not disk.exists():
        for old in CACHE.glob(f"{name}-????????????{kind}"):
            old.unlink()
        fresh = CACHE / f"{name}.new{kind}"
        if name in USER_MODE:
            make_disk(image, fresh)
            machine: Machine = UserModeMachine(name, fresh, options)
        else:
            overlay(image, fresh)
            machine = Machine(name, fresh, options)
        try:
            say(f"{name}: boot with {options[1]}: {machine.boot().strip()}")
            install(machine)
            if name in USER_MODE:
                machine.shut_down()
            else:
                machine.save("ready")
        finally:
            machine.cut_power()
        fresh.rename(disk)
    return disk, options


def copy_of(name: str, test: str) -> Machine:
    """Return a machine that is off, with a copy of the disk of `prepare`."""
    disk, options = prepare(name)
    if name in USER_MODE:
        found: Machine = UserModeMachine(name, CACHE / f"{name}.{test}.cow", options, base=disk)
        found.disk.unlink(missing_ok=True)
    else:
        found = Machine(name, CACHE / f"{name}.{test}.qcow2", options)
        shutil.copyfile(disk, found.disk)
    found.console.unlink(missing_ok=True)
    return found


def resume(machine: Machine) -> None:
    """Power on a machine of `copy_of`, whose shop then runs."""
    if isinstance(machine, UserModeMachine):
        assert machine.boot().strip() == "running", machine.sh("systemctl --failed", check=False)
        machine.sh(OTHER)
    else:
        machine.start("ready")


@pytest.fixture(params=NAMES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Return a running machine with the shop; its console stays in .cache/vm."""
    found = copy_of(request.param, re.sub(r"\W+", "-", request.node.name))
    began = time.monotonic()
    try:
        resume(found)
        kernel = found.run("uname", "-r").strip()
        yield found
        say(f"{request.node.name}: kernel {kernel}, {time.monotonic() - began:.0f} s")
    finally:
        found.cut_power()
        found.disk.unlink(missing_ok=True)


def say(text: str) -> None:
    """Print a line of the report."""
    print(f"\nvm: {text}", flush=True)


def answers(machine: Machine, limit: float = 5) -> str:
    """Return the first line that the published port sends to the other machine."""
    command = f"curl -s --max-time {limit * SLOW} http://192.0.2.1:8080/hostname"
    inside = ("ip", "netns", "exec", "other", *command.split())
    return machine.run(*inside, limit=limit + 5, check=False).strip()


def reaches(machine: Machine, who: str, address: str, port: int) -> bool:
    """Say whether `who`, a service or the other machine, can connect."""
    inside = f"nsenter --net=/run/netns/{who} nc -z -w {max(2, int(SLOW / 4))} {address} {port}"
    return machine.answer(machine.send("sh", "-c", inside))[0] == 0


def active(machine: Machine) -> dict[str, dict[str, object]]:
    """Return the rows of `niso ps` by service."""
    rows = json.loads(machine.run("niso", "ps", "--json", limit=20))
    return {row["service"]: row for row in rows}


def assert_whole(machine: Machine) -> None:
    """Check with the kernel's tools that the shop is up, once, and as declared."""
    rows = active(machine)
    assert {n: rows[n]["status"] for n in ("db", "api", "guest")} == dict.fromkeys(
        ("db", "api", "guest"), "running"
    )
    assert_once(machine)
    addresses = machine.sh("ip -br -4 addr show type bridge")
    assert len(re.findall(r"10\.99\.1\.1/24", addresses)) == 1, addresses
    assert_traffic(machine)
    names = machine.run("niso", "exec", "guest", "--", "busybox", "cat", "/etc/hosts", limit=20)
    assert re.search(rf"{re.escape(ADDRESS['api'])}\s.*\bapi\b", names), names
    assert machine.run("niso", "net", "check", limit=30).startswith("OK")


def assert_traffic(machine: Machine) -> None:
    """Check that the published port answers, and that the policy holds, also for another machine."""
    assert answers(machine) == "api"
    assert not reaches(machine, "other", ADDRESS["db"], 5432)
    assert reaches(machine, "niso-api", ADDRESS["db"], 5432)
    assert not reaches(machine, "niso-guest", ADDRESS["db"], 5432)


PORT_OF = {"db": 5432, "api": 8080, "guest": 80}
ADDRESS = {"db": "10.99.1.2", "api": "10.99.1.3", "guest": "10.99.1.4"}


def test_installed(machine: Machine) -> None:
    """The package is installed, the shop runs, and its limits are those of cgroup v2."""
    assert machine.sh("stat -f -c %T /sys/fs/cgroup").strip() == "cgroup2fs"
    assert machine.sh("cat /sys/fs/cgroup/niso-*/api/memory.max").strip() == str(48 << 20)
    assert_whole(machine)


def test_reboot(machine: Machine) -> None:
    """All enabled services, their networks, ports, policies and names come back."""
    machine.shut_down()
    assert machine.boot().strip() == "running"
    machine.sh(OTHER)
    assert_whole(machine)


EXTRA = f"""
mkdir -p /root/extra
cat > /root/extra/manifest.toml <<'END'
{MANIFEST.format(name="extra", port=99)}
END
"""
# Commands whose machine loses its power, there and back: what precedes them, the command, and what
# shows its end. Enabled services show after a boot which of the two has happened.
CHANGES = {
    "activate": (
        (
            EXTRA,
            "niso activate /root/extra",
            "pgrep -f '^/usr/bin/busybox httpd -f -p 99 ' && ip -n niso-extra addr show eth0",
        ),
        (
            "true",
            "niso remove extra",
            "! pgrep -f '^/usr/bin/busybox httpd -f -p 99 ' && ! ls /run/netns/niso-extra",
        ),
    ),
    "enable": (
        (
            f"{EXTRA} niso activate /root/extra",
            "niso enable extra",
            "systemctl is-enabled niso-extra",
        ),
        ("true", "niso disable extra", "! ls /etc/systemd/system/niso-extra.service"),
    ),
    "stack up": (
        (
            "sed -i s/8080:8080/8081:8080/ /root/shop/stack.toml",
            "niso stack up /root/shop",
            "curl -sf http://192.0.2.1:8081/hostname && ! curl -sf http://192.0.2.1:8080/hostname",
        ),
        (
            "sed -i s/8081:8080/8080:8080/ /root/shop/stack.toml",
            "niso stack up /root/shop",
            "curl -sf http://192.0.2.1:8080/hostname && ! curl -sf http://192.0.2.1:8081/hostname",
        ),
    ),
    "deploy": (  # to a service with instances, and back to a process
        (
            "cd /root/shop/api; cp manifest.toml /root/former;"
            "sed -i -e 's/1.0.0/2.0.0/' -e 's|\"/etc\"|\"/\"|' manifest.toml;"
            "printf '[service]\nupdate = \"start-first\"\n[healthcheck]\ntcp = 8080\n' >> manifest.toml",
            "niso stack up /root/shop",
            "curl -sf http://192.0.2.1:8080/etc/hostname",
        ),
        (
            "cp /root/former /root/shop/api/manifest.toml",
            "niso stack up /root/shop",
            "curl -sf http://192.0.2.1:8080/hostname",
        ),
    ),
    "net create": (
        (
            "true",
            "niso net create more --subnet 10.99.7.0/24",
            "ip -4 addr show niso-more | grep 10.99.7.1/24",
        ),
        ("true", "niso net remove more", "! ip link show niso-more"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_power_failure(machine: Machine, change: str) -> None:
    """A change whose machine loses its power is complete or undone after boot, and can be repeated."""
    seconds: list[float] = []
    for edit, command, done in CHANGES[change]:  # once without a failure
        machine.sh(edit)
        began = time.monotonic()
        machine.sh(command, limit=60)
        seconds.append(time.monotonic() - began)
        machine.wait(done)
    for number in range(CUTS):
        edit, command, done = CHANGES[change][number % 2]
        machine.sh(f"{edit}\nsync")  # the files of the test must survive
        delay = random.uniform(0, 1.3 * seconds[number % 2])
        sent = machine.send("sh", "-c", command, limit=60)
        time.sleep(delay)
        ended = machine.has_answered(sent)
        machine.cut_power()
        state = "ended" if ended else "running"
        say(
            f"{command}: power cut {number + 1}, after {delay:.2f} s, {state}"
            f" ({seconds[number % 2]:.2f} s without a cut)"
        )
        state = machine.boot().strip()
        assert state == "running", machine.sh(
            "systemctl --failed; journalctl -b -n 60 --no-pager -u 'niso*'; niso ps", check=False
        )
        machine.sh(OTHER)
        assert_after_boot(machine, change)
        if ended and change != "activate":  # of a service that is not enabled
            machine.wait(done)
        machine.run("sh", "-c", command, limit=60, check=False)
        machine.wait(done)
        assert_once(machine)
        assert machine.run("niso", "net", "check", limit=30).startswith("OK")


def assert_after_boot(machine: Machine, change: str) -> None:
    """Check that a change is not half done after a boot, and that nothing is open."""
    first = machine.run("niso", "net", "check", limit=30, check=False).splitlines()
    say(f"check after boot: {'; '.join(first)[:200]}")
    if change in ("stack up", "deploy"):
        machine.wait(" || ".join(f"{{ {done}; }}" for _, _, done in CHANGES[change]))
        states = [machine.answer(machine.send("sh", "-c", done))[0] for *_, done in CHANGES[change]]
        assert states.count(0) == 1, states
    machine.run("niso", "net", "repair", limit=40)
    assert machine.run("niso", "net", "check", limit=30).startswith("OK")
    for name, row in active(machine).items():
        if name != "extra":
            assert row["status"] in ("running", "1/1 running"), row
    assert_once(machine)
    assert not reaches(machine, "other", ADDRESS["db"], 5432)
    assert not reaches(machine, "niso-guest", ADDRESS["db"], 5432)


def assert_once(machine: Machine) -> None:
    """Check that each service of the shop has one process, besides its children for requests."""
    for name, port in PORT_OF.items():
        pids = machine.sh(f"pgrep -f '^/usr/bin/busybox httpd -f -p {port} ' || true").split()
        parents = machine.sh(f"ps -o ppid= -p {','.join(pids) or 1} || true").split()
        count = len(parents) - sum(parent in pids for parent in parents)
        assert count == 1, f"{name} runs {count} times"


def probe(machine: Machine, name: str, who: str, address: str, port: int) -> None:
    """Connect again and again from a network namespace, until the machine ends."""
    command = f"nsenter --net=/run/netns/{who} python3 /root/probe.py /run/{name}.log"
    machine.sh(f"systemd-run -q --unit=probe-{name} {command} {address} {port}")


def probes(machine: Machine) -> None:
    """Probe a published port, and by a route a port of a network: from outside and as a service."""
    probe(machine, "published", "other", "192.0.2.1", 8080)
    probe(machine, "direct", "other", ADDRESS["db"], 5432)
    probe(machine, "denied", "niso-guest", ADDRESS["db"], 5432)
    for name in ("published", "direct", "denied"):
        machine.wait(f"test $(wc -l < /run/{name}.log) -gt 3")


def results(machine: Machine, name: str) -> str:
    """Return a probe's results in order, with repetitions counted: `5 open, 2 closed, 9 open`."""
    words = [line.split()[1] for line in machine.sh(f"cat /run/{name}.log").splitlines()]
    runs: list[list[object]] = []
    for word in words:
        if not runs or runs[-1][1] != word:
            runs.append([0, word])
        runs[-1][0] = int(str(runs[-1][0])) + 1
    return ", ".join(f"{count} {word}" for count, word in runs)


# Programs that configure the machine's uplink, here a link of type dummy: how the uplink is
# declared, and what an administrator does then.
UPLINK = "198.51.100.7/24"
MANAGERS = {
    "NetworkManager": (
        "cd /etc/NetworkManager/system-connections; umask 077; printf '%s\\n' '[connection]' id=uplink"
        f" type=dummy interface-name=uplink0 '[ipv4]' method=manual address1={UPLINK},198.51.100.1"
        " > uplink.nmconnection",
        "systemctl restart NetworkManager",
        "nmcli networking off; nmcli networking on",
        "nmcli connection down uplink; nmcli connection up uplink",
    ),
    "networking": (
        "printf '%s\\n' 'auto lo uplink0' 'iface lo inet loopback' 'iface uplink0 inet static'"
        " 'pre-up ip link add uplink0 type dummy' 'post-down ip link del uplink0'"
        f" 'address {UPLINK}' 'gateway 198.51.100.1' > /etc/network/interfaces",
        "systemctl restart networking",
        "ifdown -a; ifup -a",
    ),
    "systemd-networkd": (  # this matches niso's veth pairs, too
        "cd /etc/systemd/network; printf '%s\\n' '[NetDev]' Name=uplink0 Kind=dummy > uplink.netdev;"
        "printf '%s\\n' '[Match]' Type=ether Name='!other*' '[Network]'"
        f" Address={UPLINK}"
        " Gateway=198.51.100.1 LinkLocalAddressing=no > uplink.network",
        "systemctl restart systemd-networkd",
        "networkctl reload",
        "networkctl reconfigure uplink0",
    ),
}


@pytest.mark.parametrize("manager", MANAGERS)
def test_network_manager(machine: Machine, manager: str) -> None:
    """A program that configures the uplink leaves niso's links alone, whoever starts first."""
    declare, *actions = MANAGERS[manager]
    machine.sh("systemctl disable --now systemd-networkd.socket systemd-networkd", limit=30)
    machine.sh(f"{declare}\nsystemctl enable {manager}; systemctl start {manager}", limit=60)
    probe(machine, "published", "other", "192.0.2.1", 8080)
    for action in ("true", *actions):
        machine.sh(action, limit=60)
        time.sleep(SLOW)
        assert_managed(machine, manager)
    seen = results(machine, "published")
    say(f"{'; '.join(actions)}: published: {seen}")
    assert not re.search(r"([2-9]|\d\d) closed", seen)  # one may be slow on a busy machine
    machine.sh("niso stack down /root/shop; niso stack up /root/shop", limit=60)
    time.sleep(SLOW)
    assert_managed(machine, manager)
    machine.sh("sync")
    machine.shut_down()
    assert machine.boot().strip() == "running", machine.sh("systemctl --failed", check=False)
    machine.sh(OTHER)
    assert_managed(machine, manager)


def assert_managed(machine: Machine, manager: str) -> None:
    """Check that the uplink has its address, and that only niso has configured niso's links."""
    assert machine.sh(f"systemctl is-active {manager}").strip() == "active"
    machine.wait(f"ip addr show dev uplink0 | grep 'inet {UPLINK} '")
    assert_whole(machine)
    links = machine.sh("ls /sys/class/net | grep -E '^ni'").split()
    assert len(links) == 4, links
    assert UPLINK not in machine.sh("ip -br addr show | grep ^ni")
    if manager == "NetworkManager":
        states = dict(
            line.split(":") for line in machine.sh("nmcli -t -f DEVICE,STATE device").splitlines()
        )
        assert {states[link] for link in links} == {"unmanaged"}, states
    if manager == "systemd-networkd":
        states = {
            row["Name"]: row["AdministrativeState"]
            for row in json.loads(machine.sh("networkctl --json=short"))["Interfaces"]
        }
        assert {states[link] for link in links} == {"unmanaged"}, states


# D-Bus waits 25 s for an answer, which comes later from a slow machine.
RELOADS = {
    "nftables": ("systemctl enable nftables", "systemctl restart nftables"),
    "ufw": ("true", "ufw --force enable"),
    "ufw reload": ("ufw --force enable", "ufw reload"),
    "firewalld": ("true", "systemctl start firewalld"),
    "firewalld reload": ("systemctl start firewalld", "firewall-cmd --reload || true"),
    "firewalld complete reload": (
        "systemctl start firewalld",
        "firewall-cmd --complete-reload || true",
    ),
}


@pytest.mark.parametrize("reload", RELOADS)
def test_other_firewall(machine: Machine, reload: str) -> None:
    """A firewall that starts or reloads opens nothing from outside, and what it closes is named."""
    before, action = RELOADS[reload]
    machine.sh(before, limit=30)
    take_hints(machine)
    probes(machine)
    machine.sh(action, limit=30)
    take_hints(machine)
    machine.wait("tail -n 1 /run/published.log | grep open")
    time.sleep(SLOW / 3)
    seen = {name: results(machine, name) for name in ("published", "direct", "denied")}
    say(f"{reload}: " + "; ".join(f"{name}: {result}" for name, result in seen.items()))
    assert " open" not in seen["direct"]
    assert seen["published"].endswith("open")
    assert seen["denied"].endswith("closed")
    assert answers(machine) == "api"
    assert machine.run("niso", "net", "check", limit=30).startswith("OK")


def take_hints(machine: Machine) -> None:
    """Run the commands that `niso net check` names for rules of other firewalls."""
    told = machine.run("niso", "net", "check", limit=30, check=False)
    for hint in re.findall(r"(?:iptables|ufw|firewall-cmd) [^;)\n]*", told):
        machine.sh(hint, limit=30)


def test_upgrade_and_purge(machine: Machine) -> None:
    """An upgrade disturbs no service; a purge asks, refuses in a script, and removes all if told."""
    probe(machine, "published", "other", "192.0.2.1", 8080)
    before = machine.sh("pgrep -f '^/usr/bin/busybox httpd'")
    machine.sh(
        "dpkg-deb -R /root/niso.deb /root/next; sed -i 's/^Version: .*/Version: 99/' /root/next/DEBIAN/control;"
        "dpkg-deb -Znone -b /root/next /root/next.deb; dpkg -i /root/next.deb",
        limit=120,
    )
    assert machine.sh("dpkg-query -W -f '${Version}' niso") == "99"
    assert machine.sh("pgrep -f '^/usr/bin/busybox httpd'") == before
    assert_whole(machine)
    assert "closed" not in results(machine, "published")
    refused = machine.sh("DEBIAN_FRONTEND=noninteractive dpkg --purge niso 2>&1", 60, check=False)
    assert "not removed, because it is in use: service api, service db" in refused
    assert_traffic(machine)
    machine.sh(
        "echo niso niso/disconnect boolean true | debconf-set-selections;"
        "DEBIAN_FRONTEND=noninteractive dpkg --purge niso 2>&1",
        limit=120,
    )
    left = machine.sh(
        "set +e; pgrep -fa '^/usr/bin/(busybox httpd|conmon)'; ip -br link | grep -E 'niso|^ni'; nft list tables | grep niso;"
        "ip rule | grep 'proto 78'; ls /run/netns | grep niso; ls /sys/fs/cgroup | grep niso;"
        "find /etc /usr -path '*niso*' ! -name 'niso-.service.d' ! -name slow.conf; systemctl list-unit-files | grep niso; systemctl --failed --no-legend",
        check=False,
    )
    assert not left.strip(), left
    assert machine.sh("cat /proc/sys/net/ipv4/ip_forward").strip() == "0"


def test_late_modules(machine: Machine) -> None:
    """Check finds that br_netfilter was removed by hand."""
    if not machine.sh("ls -d /lib/modules/$(uname -r)", check=False).startswith("/lib"):
        pytest.skip("this kernel has no modules")
    machine.sh("modprobe br_netfilter")
    assert machine.sh("cat /proc/sys/net/bridge/bridge-nf-call-iptables").strip() in "01"
    assert_traffic(machine)
    machine.sh("modprobe -r br_netfilter; ! lsmod | grep br_netfilter")
    assert "niso-backend" in machine.run("niso", "net", "check", limit=30, check=False)
    machine.run("niso", "net", "repair", limit=30)
    assert_traffic(machine)


# Kernel modules that niso's links and rules need, besides those that proc_sys.py lists.
NEEDED = {"br_netfilter", "nfnetlink_log", "tcp_diag", *proc_sys._ON_DEMAND} - {"vxlan"}
LIMITED = """
[network]
ports = ["8081:80"]
policy.allow_from = ["192.0.2.0/24:80/tcp"]
bandwidth.out = "1M"
"""
# Afterwards no module of NEEDED is loaded.
UNLOAD = """
niso remove $(niso ps | awk 'NR > 1 {print $1}') > /dev/null 2>&1 || true
niso net remove backend > /dev/null 2>&1 || true
niso reset --yes > /dev/null 2>&1 || niso reset --yes
for round in 1 2 3 4 5 6; do
  for module in $(lsmod | awk '$3 == 0 && /^(nf|br|veth|vxlan|sch_tbf|stp|llc|udp_|ip6_udp|tcp_diag|inet_diag)/ {print $1}')
  do rmmod $module 2> /dev/null || true; done
done
lsmod
"""


def test_missing_modules(machine: Machine) -> None:
    """A command that needs a missing kernel module names the module, and changes nothing."""
    if not machine.sh("ls -d /lib/modules/$(uname -r)", check=False).startswith("/lib"):
        pytest.skip("this kernel has no modules")
    text = MANIFEST.format(name="limited", port=80) + LIMITED
    machine.sh("mkdir /root/limited")
    machine.run("sh", "-c", "cat > /root/limited/manifest.toml", text=text)
    wrong = []
    for module in sorted(NEEDED):
        loaded = machine.sh(UNLOAD, limit=60)
        if re.search(rf"^{module} ", loaded, re.MULTILINE):
            say(f"{module} cannot be unloaded")
            continue
        machine.sh(f"echo 'install {module} /bin/false' > /etc/modprobe.d/missing.conf")
        command = "niso activate /root/limited"
        said = machine.run("sh", "-c", f"{command} 2>&1; echo status $?", limit=40, check=False)
        say(f"without {module}: {said.strip()}")
        left = machine.sh(
            "set +e; nft list tables | grep niso; ip -br link | grep '^ni'; ls /run/netns | grep niso; true"
        )
        if "status 0" not in said and (left or not re.search(rf"\b{module}\b", said)):
            wrong.append((module, said, left))
            say(f"wrong: {wrong[-1]}")
        machine.sh("rm /etc/modprobe.d/missing.conf")
    machine.sh(UNLOAD, limit=60)
    machine.run("niso", "activate", "/root/limited", limit=40)
    assert machine.run("niso", "net", "check", limit=30).startswith("OK")
    assert wrong == []


TIMED = f"""
mkdir /root/tick /root/well
cat > /root/tick/manifest.toml <<'END'
[package]
name = "tick"
version = "1"
[service]
kind = "job"
schedule = "*-*-* 12:00:00"
[binary]
entrypoint = "/usr/bin/busybox"
args = ["echo", "ticked"]
END
cat > /root/well/manifest.toml <<'END'
{MANIFEST.format(name="well", port=81)}
[service]
replicas = 2
[network]
network = "backend"
[healthcheck]
http = "http://localhost:81/hostname"
END
cat >> /root/shop/guest/manifest.toml <<END
[network.policy]
allow_from = ["db:80/tcp"]
mode = "audit"
audit_until = $(date -u -d "+2 hours" +%Y-%m-%dT%H:%M:%SZ)
END
niso activate /root/tick /root/well
niso enable tick
niso stack up /root/shop
"""


@pytest.mark.parametrize("jump", ["+1 day", "-1 day"])
def test_clock(machine: Machine, jump: str) -> None:
    """A jump of the clock disturbs nothing; a job runs once; an audit ends with the next repair."""
    machine.sh(TIMED, limit=60)
    assert reaches(machine, "niso-api", ADDRESS["guest"], 80)
    machine.sh(f"date -s '{jump}'")
    machine.wait("niso ps | grep -q '^well .*2/2 running  healthy [0-9]s ago'")
    assert_traffic(machine)
    told = machine.run("niso", "net", "check", limit=30, check=False)
    assert "with a timeout after its end" in told
    machine.run("niso", "net", "repair", limit=30)
    assert not reaches(machine, "niso-api", ADDRESS["guest"], 80)
    assert_whole(machine)
    ran = "1" if jump == "+1 day" else "0"
    machine.wait(f"test $(niso logs tick | grep -c ticked) = {ran}")
    machine.sh("kill -STOP $(pgrep -o -f '^/usr/bin/busybox httpd -f -p 81 ')")
    machine.wait("niso ps -i | grep -q '^well[.][0-9] .*unhealthy'", limit=30)
    machine.sh(f"date -s '{'-' if jump[0] == '+' else '+'}1 day'")
    machine.run("niso", "net", "repair", limit=30)
    assert_whole(machine)


def test_deploy(machine: Machine) -> None:
    """A new version replaces the one before without a failed connection to the published port."""
    for edit, command, done in CHANGES["deploy"][:1]:
        machine.sh(edit)
        machine.sh(command, limit=60)
        machine.wait(done)
    probe(machine, "published", "other", "192.0.2.1", 8080)
    machine.wait("test $(wc -l < /run/published.log) -gt 3")
    for version in ("3.0.0", "4.0.0"):
        machine.sh(
            f"sed -i 's/^version = .*/version = \"{version}\"/' /root/shop/api/manifest.toml"
        )
        machine.sh(f"date > /root/shop/api/{version}; niso stack up /root/shop", limit=60)
    seen = results(machine, "published")
    say(f"two deploys: {seen}")
    assert "closed" not in seen
    assert "4.0.0" in machine.run("niso", "history", "api")
    assert machine.run("niso", "net", "check", limit=30).startswith("OK")


# What ./dev demo needs of the clone.
DEMO = "dev bin src pyproject.toml README.md LICENSE examples/shop"


@pytest.fixture
def clone(machine: Machine) -> Machine:
    """Return a machine without the shop, with a clone for root and for a user with sudo."""
    archive = CACHE / f"clone-{os.getpid()}.tar.gz"
    listed = ("git", "-C", ROOT, "ls-files", "-z", *DEMO.split())
    files = subprocess.run(listed, stdout=-1, check=True).stdout
    command = ("tar", "-C", ROOT, "--null", "-T", "-", "-czf", archive)
    subprocess.run(command, input=files, check=True)
    machine.put(archive, "/root/clone.tar.gz")
    archive.unlink()
    machine.sh(
        "niso remove api db guest; useradd --create-home --groups sudo user;"
        "echo 'user ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/user;"
        "mkdir -p /root/niso/.venv/bin /home/user/niso; ln -s /usr/bin/niso /root/niso/.venv/bin/;"
        "for home in /root /home/user; do tar -C $home/niso -xzf /root/clone.tar.gz; done;"
        "chown -R user: /home/user",
        limit=60,
    )
    return machine


def test_demo(clone: Machine) -> None:
    """The demo, with PostgreSQL and Redis, passes as root and as a user with and without sudo."""
    said = clone.sh("niso lab -- /root/niso/examples/shop/demo 2>&1", limit=120)
    assert "\n0 of " in said, said
    # pip finds setuptools in Debian's wheels
    demo = (
        "cd /home/user; runuser -u user -- env HOME=/home/user PIP_NO_INDEX=1 PIP_FIND_LINKS=/usr/share/python-wheels"
        " /home/user/niso/dev demo 2>&1; test -s /home/user/niso/.cache/demo/shop.svg;"
        "rm -r /home/user/niso/.cache/demo; find /home/user ! -user user | (! grep .)"
    )
    for namespaces in ("1", "0"):  # without namespaces of its own the demo runs by sudo
        clone.sh(f"sysctl -w kernel.unprivileged_userns_clone={namespaces}")
        said = clone.sh(demo, limit=240)
        assert "\n0 of " in said, said
        assert ("sudo .venv/bin/niso lab" in said) is (namespaces == "0"), said


def test_demo_after_boot(clone: Machine) -> None:
    """The demo's stack runs in the machine; its database survives a reboot and a power failure."""
    clone.sh("niso stack up /root/niso/examples/shop", limit=120)
    visits = [visit(clone)]
    clone.sh("niso enable postgres redis api; sync", limit=40)
    for cut in (False, True):
        if cut:
            clone.cut_power()
        else:
            clone.shut_down(limit=60)
        assert clone.boot(limit=120).strip() == "running"
        clone.sh(OTHER)
        visits.append(visit(clone))
    assert visits == [1, 2, 3]
    assert clone.run("niso", "net", "check", limit=30).startswith("OK")


def visit(machine: Machine) -> int:
    """Fetch the page of the demo from the other machine; return the number of its visits."""
    fetch = "ip netns exec other curl -sf --max-time 60 http://192.0.2.1:8080/"
    found: int = json.loads(machine.wait(fetch, limit=30))["visits"]
    return found


SCTP = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)"


def test_sctp(machine: Machine) -> None:
    """A policy applies to SCTP sockets, and an SCTP port can be published."""
    machine.sh("modprobe sctp", check=False)  # or built in
    server = f"{SCTP}; s.bind(('', 9000)); s.listen()\nwhile True: s.accept()[0].send(b'sctp')"
    client = f"{SCTP}; s.settimeout({SLOW}); s.connect(('{{}}', 9000)); print(s.recv(9))"
    manifest = (
        '[package]\nname = "signal"\nversion = "1"\n[binary]\nentrypoint = "python3"\n'
        f"args = ['-c', '''{server}''']\n[network]\nnetwork = \"backend\"\n"
        'ports = ["9000:9000/sctp"]\npolicy.allow_from = ["api:9000/sctp"]\n'
    )
    machine.sh("mkdir /root/signal")
    machine.run("sh", "-c", "cat > /root/signal/manifest.toml", text=manifest)
    machine.run("niso", "activate", "/root/signal", limit=40)
    address = machine.sh("ip netns exec niso-signal ip -4 -o addr show eth0").split()[3][:-3]

    def connects(who: str, address: str) -> bool:
        command = ("nsenter", f"--net=/run/netns/{who}", "python3", "-c", client.format(address))
        return "sctp" in machine.run(*command, limit=30, check=False)

    assert connects("niso-api", address)
    assert not connects("niso-guest", address)
    assert not connects("other", address)
    assert not connects("other", "192.0.2.1")  # published, and refused by the policy
    machine.sh("sed -i 's|api:9000/sctp|192.0.2.0/24:9000/sctp|' /root/signal/manifest.toml")
    machine.run("niso", "activate", "/root/signal", limit=40)
    assert connects("other", "192.0.2.1")
    assert not connects("niso-api", address)


def test_health(machine: Machine) -> None:
    """A health check of all the addresses of a name works, also without IPv6 in the kernel."""
    machine.sh("mkdir /root/well")
    text = MANIFEST.format(name="well", port=80)
    text += '[healthcheck]\nhttp = "http://localhost/hostname"\nstart_period = "60s"\n'
    machine.run("sh", "-c", "cat > /root/well/manifest.toml", text=text)
    machine.run("niso", "activate", "/root/well", limit=60)
    machine.wait('niso inspect well | grep \'"health": "healthy"\'', limit=20)


HOSTS = {"a": "198.51.100.1", "b": "198.51.100.2", "c": "198.51.100.3"}
WIRE = """
hostnamectl hostname {name}
printf '[Match]\nName=vec0\n[Network]\nAddress={address}/24\n' > /etc/systemd/network/wire.network
networkctl reload
niso remove db api guest
rm -r /var/lib/niso # each host needs a state folder of its own
mkdir -p /root/{name}
cat > /root/{name}/manifest.toml <<'END'
{manifest}[network]
network = "span"
ports = ["8080:80"]
policy.allow_from = ["{friend}"]
END
sync
"""


@pytest.fixture
def hosts() -> Iterator[dict[str, Machine]]:
    """Return three machines on one wire, without the shop, and with a service each to activate."""
    if NAMES != ["uml"]:
        pytest.skip("the network of three machines is that of user-mode kernels")
    found: dict[str, Machine] = {}
    try:
        for number, (end, (name, address)) in enumerate(
            zip(connect(len(HOSTS)), HOSTS.items(), strict=True), 1
        ):
            one = copy_of("uml", f"host-{name}")
            assert isinstance(one, UserModeMachine)
            one.wire, one.number = end, number
            found[name] = one
            assert one.boot().strip() == "running", one.sh("systemctl --failed", check=False)
            friend = "a" if name != "a" else "b"
            manifest = MANIFEST.format(name=name, port=80)
            text = WIRE.format(name=name, address=address, manifest=manifest, friend=friend)
            one.sh(text, limit=60)
        yield found
    finally:
        for one in found.values():
            one.cut_power()
            one.disk.unlink(missing_ok=True)


def join(first: Machine, host: Machine, name: str, how: str = "") -> str:
    """Let a host join the cluster, or with `how` renew its certificates and its keys."""
    where = how or f"--address {HOSTS[name]}"
    invitation = first.run("sh", "-c", f"niso cluster invite {name} {where} | cat", limit=30)
    return host.run("niso", "cluster", "join", "-", text=invitation, limit=60)


def fetches(machine: Machine, service: str, target: str) -> bool:
    """Say whether a service can fetch a page of another by its name."""
    fetch = ("busybox", "wget", "-q", "-T", str(int(SLOW)), "-O", "-", f"http://{target}/hostname")
    return target in machine.run("niso", "exec", service, "--", *fetch, limit=20, check=False)


def test_cluster(hosts: dict[str, Machine]) -> None:
    """Three machines with the kernel's WireGuard; one loses its power during an activation."""
    a, b, c = hosts.values()
    for address in HOSTS.values():
        a.wait(f"ping -c 1 -W 1 {address}")
    a.run("niso", "cluster", "init", "--encrypt", "--name", "a", "--address", HOSTS["a"], limit=60)
    for name in ("b", "c"):
        join(a, hosts[name], name)
    a.wait("test $(niso cluster status | grep -c ' 0s$') = 3", limit=60)
    assert "WireGuard (kernel)" in a.run("niso", "cluster", "status")
    a.run("niso", "net", "create", "span", "--span", "--subnet", "10.99.7.0/24", limit=30)
    for name in ("a", "b", "c"):
        hosts[name].run("niso", "activate", f"/root/{name}", limit=60)
    for name, host in hosts.items():
        host.wait(f"niso exec {name} -- busybox grep -w c /etc/hosts", limit=30)
    assert_cluster(hosts)
    join(a, b, "b", "--renew")
    a.wait("niso cluster status | grep -q '^b .* 0s$'", limit=30)
    assert_cluster(hosts)

    b.sh("sed -i 's/1.0.0/2.0.0/; s/8080:80/8081:80/' /root/b/manifest.toml; sync")
    b.send("niso", "activate", "/root/b", limit=60)
    time.sleep(random.uniform(0.1, 0.6) * SLOW / 4)
    b.cut_power()
    a.wait("niso cluster status | grep -q '^b .*gone'", limit=60)
    assert fetches(c, "c", "a")
    b.boot()
    a.wait("niso cluster status | grep -q '^b .*alive.* 0s$'", limit=60)
    say("check after the power cut: " + b.run("niso", "net", "check", limit=30, check=False)[:300])
    b.run("niso", "activate", "/root/b", limit=60)
    assert b.run("niso", "net", "repair", limit=60)
    assert_cluster(hosts)


def assert_cluster(hosts: dict[str, Machine]) -> None:
    """Check names, addresses, policies and WireGuard between the services of three machines."""
    assert fetches(hosts["a"], "a", "b")
    assert fetches(hosts["a"], "a", "c")
    assert fetches(hosts["b"], "b", "a")
    assert not fetches(hosts["b"], "b", "c")
    for host in hosts.values():
        assert host.run("niso", "net", "check", limit=30).startswith("OK")
        assert host.sh("wg show all latest-handshakes | wc -l").strip() == "2"


if __name__ == "__main__":
    copy_of(sys.argv[1], "shell").interact("ready")
