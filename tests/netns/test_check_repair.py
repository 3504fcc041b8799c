"""Test that net check reports each damage, and that net repair repairs it and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest
import snapshots
from conftest import Lab
from damage_world import World
from damages import DAMAGES, Damage, fits
from services import CLIENT, HOST, answer, ask, echo, idle, inspect, on, refused

LONG = os.environ.get("NISO_TEST_LONG") == "1"
"""Each damage alone, on networks of one family and of both; else each once, together with some that touch other things."""
TOGETHER = 6


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[World]:
    with Lab(deadline_seconds=900) as lab:
        yield World(lab, request.param == "dual")


def matches(found: list[dict[str, str]], wanted: list[tuple[str, str]]) -> bool:
    pairs = [(each["problem"], each["what"]) for each in found]
    return len(pairs) == len(wanted) and all(
        any(problem == p and fits(text, what) for p, what in pairs) for problem, text in wanted
    )


def touched(name: str) -> set[str]:
    """What a damage changes, or is in the way of reading, by its findings: in words of `WORDS`."""
    damage = DAMAGES[name]
    text = " ".join(what for _, what in damage.found)
    words = {SAME.get(word, word) for word in re.findall(WORDS, text)}
    if any(word.startswith("store") for word in words):
        words -= {"service 'api'"}
    if "eth0" in words or "eth1" in words:
        words.discard("niso-api")
    elif "niso-api" in words:
        words |= {"eth0", "eth1"}
    assert words, name
    return words


WORDS = r"store: \w+|element|eth[01]|niapi|niso-[a-z]+|nipeer|stray|nftables|hosts|line |sysctl|service 'api'|process|routing rule"
SAME = {"element": "nftables", "line ": "hosts", "niapi": "eth0", "nipeer": "niso-peer"}


def together(names: list[str]) -> list[list[str]]:
    """Damages in groups that are done, found and repaired at once: no two of a group touch the same.

    What is lost for good, or ends connections, is done alone. Without rows of the store nothing else is looked at.
    """
    groups: list[tuple[list[str], set[str]]] = []
    for name in names:
        damage = DAMAGES[name]
        alone = LONG or damage.anew or damage.quiet
        words = touched(name) if not alone else set()
        of_store = "store row" in damage.of
        for group, taken in groups:
            fits = taken and not taken & words and len(group) < TOGETHER
            if not alone and fits and of_store == ("store row" in DAMAGES[group[0]].of):
                group.append(name)
                taken.update(words)
                break
        else:
            groups.append(([name], words))
    # each damage of what is created again is followed by a new picture, so these come last
    return sorted((group for group, _ in groups), key=lambda group: DAMAGES[group[0]].anew)


def test_damages_are_named_alone_and_mended_alone(shared: World, names: list[str]) -> None:
    try:
        _damage_and_mend(shared, [DAMAGES[name] for name in names])
    except BaseException:
        shared.start_over()  # the next one is judged by itself
        raise


def _damage_and_mend(shared: World, damages: list[Damage]) -> None:
    lab = shared.lab
    wanted = [finding for damage in damages for finding in damage.found]
    anew = any(damage.anew for damage in damages)
    before = {} if anew else shared.before()
    if any(damage.quiet for damage in damages):
        shared.tell("pause")
    for damage in damages:
        shared.harm(damage.commands)
    # who ends a process is done before it has ended
    shown: list[dict[str, str]] = []

    def as_wanted() -> bool:
        shown[:] = shared.check()
        return matches(shown, wanted)

    try:
        lab.wait_for(as_wanted, 5)
    except BaseException as error:
        error.add_note(f"wanted {wanted}, not {shown}")
        raise
    status, out, err = shared.niso("net", "repair", "-v")
    assert status == 0 and out.startswith("repaired: ") and err, err
    shared.assert_transfer_goes_on()
    if anew or LONG:
        assert shared.niso("net", "repair", "-v") == (0, "nothing to repair\n", "")
        assert shared.check() == []
    if not anew:
        assert "\n".join(snapshots.differences(before, snapshots.take(lab))) == ""
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
    api = inspect(lab, "api")
    assert api["endpoints"][0]["address"][0] == "10.99.1.2"
    there = os.stat(lab.path(f"/proc/{api['pid']}/ns/net")).st_ino
    assert there == os.stat(lab.path("/run/netns/niso-api")).st_ino
    if anew:
        for left in ("tap0", "tap1"):
            lab.run("ip", "link", "delete", left, check=False)
        shared.forget_before()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each damage with the networks on which it can be done."""
    if "names" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(stack, names, id=f"{stack}-{' + '.join(names)}")
        for stack in ("dual", "single")
        for names in together(
            [
                name
                for name, damage in DAMAGES.items()
                if (damage.stack or stack) == stack and (LONG or stack == (damage.stack or "dual"))
            ]
        )
    ]
    metafunc.parametrize(("shared", "names"), cases, indirect=["shared"], scope="module")


@pytest.fixture(scope="module")
def two() -> Iterator[World]:
    with Lab(deadline_seconds=300) as lab:
        yield World(lab, dual=False)


def test_check_of_one_service_or_network_sees_only_that(two: World) -> None:
    lab = two.lab
    assert two.niso("net", "check", "api")[0] == 0
    lab.run("nft", "delete", "element", "inet", "niso", "publish_any4", "{ tcp . 9090 }")
    status, out, err = two.niso("net", "check", "api")
    assert (status, out) == (0, "api: the kernel matches the configuration\n")
    assert "nothing listens on 10.99.1.2:81; python3 listens on 0.0.0.0:80" in err
    assert two.niso("net", "check", "extra")[0] == 0
    lab.run("nft", "flush", "chain", "inet", "niso", "forward")  # of all services
    status, out, err = two.niso("net", "check", "api")
    assert (status, out) == (1, "different: nftables chain inet niso forward\n")
    two.niso("net", "repair")
    lab.run("nft", "delete", "element", "inet", "niso", "publish_any4", "{ tcp . 9090 }")
    status, out, err = two.niso("net", "check", "peer")
    assert status == 1 and out.startswith("missing: nftables map element") and not err
    assert "nothing" in refused(lab, "net", "check", "nothing", status=2)
    entry = "neighbour add 10.99.1.9 lladdr 02::1 dev eth0"
    lab.run("ip", "-n", "niso-api", *entry.split(), check=False)
    lab.run("bridge", "link", "set", "dev", two.port, "isolated", "on")
    assert two.check("extra") == []
    assert matches(two.check("api"), [("different", "veth ...")])
    assert lab.niso("net", "repair").stdout == "repaired: 2 steps\n"


def test_repair_dry_run_prints_the_steps_and_changes_nothing(two: World) -> None:
    lab = two.lab
    lab.run("ip", "address", "delete", "10.99.2.1/24", "dev", "niso-extra")
    lab.run("ip", "netns", "delete", "niso-api")
    two.sql("DELETE FROM host_name WHERE service='peer'")
    before = snapshots.take(lab)
    status, planned, _ = two.niso("net", "repair", "--dry-run")
    assert status == 0
    *steps, neighbour = planned.splitlines()
    assert steps == [
        "write host_name of peer in the store",
        f"ip netns attach niso-api {two.pid}",
        "ip address add 10.99.2.1/24 dev niso-extra",
    ]
    # it went with the last IPv4 address of the link
    assert neighbour.startswith("ip neighbour replace 10.99.2.2 lladdr 0a:")
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert two.niso("net", "repair", "-v")[2] == planned


def test_everything_damaged_at_once_is_mended(two: World) -> None:
    lab = two.lab
    pids = {name: inspect(lab, name)["pid"] for name in ("api", "peer")}
    lab.run("nft", "flush", "ruleset")
    lab.run("ip", "link", "delete", "niso-backend")
    lab.run("ip", "link", "delete", two.port)
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    lab.run("rm", "-r", "/run/niso/hosts")
    two.sql("DELETE FROM lease")
    assert len(two.check()) == 2
    lab.niso("net", "repair")
    assert two.check() == []
    assert lab.niso("net", "repair").stdout == "nothing to repair\n"
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
    # their processes live: the folder that they read names from is mounted into them again
    assert {name: inspect(lab, name)["pid"] for name in pids} == pids
    for name in pids:
        assert "peer.niso.local" in lab.niso("exec", name, "--", "cat", "/etc/hosts").stdout


def test_command_that_needs_a_row_that_is_gone_says_so(two: World) -> None:
    two.sql("DELETE FROM lease WHERE service='peer'", "DELETE FROM subnet WHERE network='extra'")
    status, out, err = two.niso("activate", "/tmp/packages/api")
    assert (
        (status, out) == (1, "") and "related rows are missing" in err and "niso net check" in err
    ), err
    status, out, err = two.niso("net", "repair")
    assert (status, out) == (1, "") and "network 'extra'" in err, err
    two.sql("INSERT INTO subnet VALUES ('extra', 4, '10.99.2.0/24', '10.99.2.1')")
    two.niso("net", "repair")
    assert two.check() == []


def test_odd_files_in_the_run_folder_keep_no_service_from_being_deactivated(two: World) -> None:
    lab = two.lab
    hosts, state = "/run/niso/hosts/extra/hosts", "/run/niso/services/lone/state.json"
    for odd in ("mkfifo", "mkdir", f"mkdir -p {hosts}/full"):
        lab.niso("activate", idle(lab, "lone", network=on("extra")))
        lab.run("sh", "-c", f"rm {hosts} {state}; {odd} {hosts}; mkfifo {state}")
        assert lab.niso("ps", check=False, timeout=20).returncode == 0
        assert lab.niso("deactivate", "lone", timeout=20).returncode == 0
        lab.run("rm", "-rf", "/run/niso/hosts/extra")
        lab.niso("net", "repair")
    assert two.check() == []


def test_fifos_in_the_folder_of_a_run_keep_nobody_waiting(two: World) -> None:
    lab = two.lab
    lab.niso("activate", idle(lab, "lone", network=on("extra")))
    pid = inspect(lab, "lone")["pid"]
    fifos = "rm conmon.pid; mkfifo stopping conmon.pid exits/left exited.pid"
    lab.run("sh", "-c", f"cd /run/niso/services/lone/run-0; {fifos}")
    logs = "cd /var/lib/niso/logs/lone; rm -f *; mkfifo service.log service.log.1"
    lab.run("sh", "-c", logs, check=False)
    for words in (("ps",), ("logs", "lone"), ("net", "check"), ("inspect", "lone")):
        lab.niso(*words, timeout=20, check=False)
    assert lab.niso("deactivate", "lone", timeout=30).returncode == 0
    assert not lab.path(f"/proc/{pid}").exists()
    two.niso("net", "repair")
    assert two.check() == []


def test_hosts_file_that_is_a_full_folder_is_not_removed(two: World) -> None:
    lab = two.lab
    hosts = "/run/niso/hosts/backend/hosts"
    lab.run("sh", "-c", f"rm {hosts}; mkdir -p {hosts}/full")
    status, out, err = two.niso("net", "repair")
    assert (
        (status, out) == (1, "")
        and f"{hosts} is a folder and not empty" in err
        and "move it away" in err
    ), err
    lab.run("mv", hosts, "/tmp/away")
    assert two.niso("net", "repair")[:2] == (0, "repaired: 1 step\n")
    assert two.check() == []


def test_ps_tells_a_process_that_ended_unnoticed_from_one_that_was_moved(two: World) -> None:
    lab = two.lab
    two.leave_cgroup()
    rows = {row["service"]: row["status"] for row in json.loads(lab.niso("ps", "--json").stdout)}
    assert (rows["api"], rows["peer"]) == ("running", "running")
    two.niso("net", "repair")
    conmon = two.stop_conmon()
    lab.wait_for(
        lambda: (
            {r["service"]: r["status"] for r in json.loads(lab.niso("ps", "--json").stdout)}
            == rows | {"api": "failed"}
        ),
        5,
    )
    lab.run("kill", "-CONT", *conmon)  # repair would wait for it
    lab.wait_for(lambda: two.niso("net", "repair")[0] == 0 and two.check() == [], 20)


def test_package_copy_that_is_gone_is_not_replaced_by_another_package(two: World) -> None:
    lab = two.lab
    pid = two.pid
    lab.run("sh", "-c", "rm -r /var/lib/niso/packages/api/*; echo new > /tmp/packages/api/more")
    status, out, err = two.niso("net", "repair")
    assert (status, out) == (1, "") and "api: its package copy" in err, err
    assert "niso activate /tmp/packages/api/manifest.toml" in err, err
    assert two.pid == pid
    lab.niso("activate", "/tmp/packages/api/manifest.toml")
    assert two.check() == []


def test_next_command_builds_the_rules_anew_for_all_services(two: World) -> None:
    """An activation after a flush must not leave the other services without their rules.

    Nor do their ports stay as a version of niso left them that let bridges learn and flood.
    """
    lab = two.lab
    lab.run("nft", "flush", "ruleset")
    lab.run("bridge", "link", "set", "dev", two.port, "learning", "on", "flood", "on")
    lab.run("bridge", "fdb", "flush", "dev", two.port, "static", "master")
    lab.niso("activate", idle(lab, "new", network=on("backend")))
    assert two.check() == []
    assert ask(lab, HOST, 8080, "client") == f"api {CLIENT}"


# --- sweep ------------------------------------------------------------------------------------------------------------


OF_OTHERS = """\
link add niso-vpn type bridge
link add niso-veth type veth peer name niso-peer
link set niso-veth alias another-program
netns add niso-foreign
link add niso-tap type veth peer name niso-tap2
address add 10.8.0.1/24 dev niso-vpn
"""


@pytest.mark.parametrize("store", ["kept", "damaged", "lost with the run folder"])
def test_sweep_removes_all_that_is_nisos_and_nothing_else(lab: Lab, store: str) -> None:
    lab.run("ip", "-batch", "-", input=OF_OTHERS)
    tables = "add table inet other; add chain inet other c; add table ip niso; add table inet niso2"
    lab.run("nft", tables)
    before = snapshots.take(lab)
    lab.niso("net", "create", "backend", "--ipv6")
    lab.niso("net", "create", "inner", "--internal", "--ipv6")
    lab.niso(
        "activate",
        echo(lab, "api", network=on("backend", ports=["8080:80"])),
        idle(lab, "peer"),
        idle(lab, "none", network={"mode": "none"}),
        idle(lab, "beside", network={"mode": "host"}),
    )
    pids = [inspect(lab, name)["pid"] for name in ("api", "peer", "none", "beside")]
    lab.run("ip", "link", "set", "niso-tap", "master", "niso-backend")
    if store.startswith("lost"):
        lab.run("sh", "-c", "rm -rf /var/lib/niso/*")
    if store.endswith("run folder"):
        lab.run("sh", "-c", "rm -rf /run/niso/*")
    elif store == "damaged":
        lab.run("sh", "-c", "rm -f /var/lib/niso/state.db-*; echo rubbish > /var/lib/niso/state.db")
    planned = lab.niso("reset", "--yes", "--dry-run").stdout
    assert "ip link delete niso-backend" in planned and "delete niso-vpn" not in planned
    lab.niso("reset", "--yes")
    after = snapshots.take(lab)
    for each in (before, after):
        each.pop("store")
        each["files"] = {
            path: value
            for path, value in each["files"].items()
            if not path.startswith("/var/lib/niso")
        }
    assert "\n".join(snapshots.differences(before, after)) == ""
    assert not [pid for pid in pids if lab.path(f"/proc/{pid}").exists()]
    assert lab.niso("reset", "--yes").stdout == "nothing of niso is in the kernel\n"


def test_bridges_of_others_and_their_entries_are_not_nisos(lab: Lab) -> None:
    """All bridges are asked for their tables at once."""
    lab.niso("net", "create", "front")
    lab.niso("activate", idle(lab, "api", network={"networks": ["backend", "front"]}))
    mac = lab.run("ip", "netns", "exec", "niso-api", "cat", "/sys/class/net/eth0/address").stdout
    for words in (
        "ip link add other type bridge",
        "ip link add port type veth peer name end",
        "ip link set port master other up",
        "bridge fdb add 02:00:00:00:00:01 dev port master static",
        f"bridge fdb add {mac.strip()} dev port master static",
        "bridge fdb add 02:00:00:00:00:02 dev other self permanent",
    ):
        lab.run(*words.split())
    assert lab.niso("net", "check").stdout == "OK: the kernel matches the configuration\n"
    bridge = "niso-front"
    port = lab.run("sh", "-c", f"ls /sys/class/net/{bridge}/brif").stdout.strip()
    lab.run(*f"bridge fdb add 02:00:00:00:00:01 dev {port} master static".split())
    said = lab.niso("net", "check", check=False).stdout
    assert f"forwarding entry 02:00:00:00:00:01 of bridge port {port}" in said
    assert len(said.strip().splitlines()) == 1, said


def test_check_beside_another_command_finds_nothing(lab: Lab) -> None:
    folder = idle(lab, "busy")
    lab.niso("activate", idle(lab, "calm"), folder)
    loop = f"for i in $(seq {12 if LONG else 3}); do niso remove busy; niso activate $0; done"
    busy = lab.popen("sh", "-c", loop, folder)
    checks = []
    while busy.poll() is None and len(checks) < 200:
        done = lab.niso("net", "check", check=False)
        checks.append((done.returncode, done.stdout, done.stderr))
    assert busy.communicate(timeout=60) is not None and len(checks) > 5
    said = "OK: the kernel matches the configuration\n"
    # the machine's neighbour table, of which check warns, is others' too
    wrong = [
        check
        for check in checks
        if check[:2] != (0, said) or (check[2] and "table" not in check[2])
    ]
    assert wrong == []
