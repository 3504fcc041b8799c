"""Activate, deactivate, restart and remove real services, and verify the result in the kernel."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import images
import pytest
import snapshots
from conftest import Lab, assert_whole
from services import (
    HOST,
    address,
    answer,
    busybox_rootfs,
    echo,
    idle,
    inside,
    namespace,
    on,
    package,
    pid_of,
    ps,
    refused,
)


def host_end(lab: Lab, name: str, link: str = "eth0") -> dict[str, Any]:
    """The host's end of a service's veth pair, found by the kernel's own index of it."""
    index = lab.ip_json("link", "show", "dev", link, netns=f"niso-{name}")[0]["link_index"]
    return next(each for each in lab.ip_json("-d", "link") if each["ifindex"] == index)


# --- the first activation -------------------------------------------------------------------------------------------


@pytest.mark.rootless
def test_first_activation_makes_bridge_namespace_veth_address_and_default_route(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    bridge = lab.ip_json("-d", "address", "show", "dev", "niso-backend")[0]
    assert bridge["linkinfo"]["info_kind"] == "bridge"
    assert re.fullmatch("niso:[0-9a-f]{8}", bridge["ifalias"])
    assert [entry["local"] for entry in bridge["addr_info"] if entry["family"] == "inet"] == [
        "10.99.1.1"
    ]
    assert "UP" in bridge["flags"]

    port = host_end(lab, "api")
    assert (port["master"], port["ifalias"]) == ("niso-backend", bridge["ifalias"])
    assert port["linkinfo"]["info_kind"] == "veth" and "UP" in port["flags"]
    link = inside(lab, "api", "eth0")
    assert [(entry["local"], entry["prefixlen"]) for entry in link["addr_info"]] == [
        ("10.99.1.2", 24)
    ]
    assert "UP" in link["flags"]
    routes = lab.ip_json("route", netns="niso-api")
    assert [(route["dst"], route["dev"], route.get("gateway")) for route in routes] == [
        ("default", "eth0", "10.99.1.1"),
        ("10.99.1.0/24", "eth0", "10.99.1.1"),
        ("10.99.1.1", "eth0", None),
    ]
    assert [link["ifname"] for link in lab.ip_json("link", netns="niso-api")] == ["lo", "eth0"]
    assert "UP" in lab.ip_json("link", "show", "dev", "lo", netns="niso-api")[0]["flags"]


@pytest.mark.rootless
def test_process_runs_in_its_namespace_from_a_copy_and_may_bind_every_port(lab: Lab) -> None:
    """No process of niso but conmon is left."""
    api = echo(lab, "api", port=1)
    lab.niso("activate", api, idle(lab, "worker"))
    pid = pid_of(lab, "worker")
    assert os.stat(lab.path(f"/proc/{pid}/ns/net")).st_ino == namespace(lab, "worker")
    listing = lab.run("ps", "-ww", "-eo", "comm=,args=").stdout.splitlines()
    known = (
        "conmon |niso-init |.* -m niso.lab |.*/lab_agent"  # the last where the clone is called niso
    )
    assert not [line for line in listing if "niso" in line and not re.match(known, line)]
    assert len([line for line in listing if line.startswith("conmon")]) == 2
    assert answer(lab, address(lab, "api"), 1, "niso-worker") == f"api {address(lab, 'worker')}"
    status = lab.run("grep", "^CapEff", f"/proc/{pid}/status").stdout
    assert int(status.split()[1], 16) == 0
    assert "1 received" in lab.niso("exec", "worker", "--", "ping", "-c1", "-W2", "api").stdout
    # a package is a read-only copy at /app
    text = lab.path(f"{api}/echo.py").read_text()
    lab.write(f"{api}/echo.py", "changed since\n")
    assert lab.niso("exec", "api", "--", "cat", "/app/echo.py").stdout == text
    done = lab.niso("exec", "api", "--", "sh", "-c", "pwd; echo x >/app/echo.py", check=False)
    assert done.stdout == "/app\n" and "Read-only" in done.stderr


@pytest.mark.rootless
def test_service_runs_from_its_own_rootfs_as_the_user_asked_for(lab: Lab) -> None:
    users = {"box": None, "web": "web", "both": "33:99"}
    folders = []
    for name, user in users.items():
        words = (lab, name, "sh", "-c", "id; exec sleep 1000")
        service = {"user": user} if user else {}
        folders.append(package(*words, package={"rootfs": "rootfs"}, service=service))
        busybox_rootfs(lab, f"{folders[-1]}/rootfs")
    before = sorted(str(path) for path in lab.path("/tmp/packages").rglob("*"))
    lab.niso("activate", *folders)
    said = {n: lab.wait_for(lambda n=n: lab.niso("logs", n).stdout) for n in users}
    assert re.match(r"uid=19000000\d\d\(box\) gid=19000000\d\d", said["box"])
    assert said["web"].startswith("uid=33(web) gid=44(web)")
    assert said["both"].startswith("uid=33(web) gid=99")
    assert sorted(str(path) for path in lab.path("/tmp/packages").rglob("*")) == before
    assert lab.niso("exec", "box", "--", "ls", "/bin/busybox").stdout == "/bin/busybox\n"
    assert lab.niso("exec", "box", "--", "ls", "/usr", check=False).returncode != 0


def test_several_services_run_images_in_one_shared_rootfs_that_none_can_change(lab: Lab) -> None:
    """The image says program, user, environment, working directory, stop signal and volumes."""
    root = busybox_rootfs(lab, "/tmp/roots/box")
    script = "id; pwd; env; touch /bin/x /home/web/x; touch /data/kept && ls -ln /data;"
    script += " trap 'echo got INT; exit 0' INT; while :; do sleep 0.1; done"
    config = {
        "Entrypoint": ["sh", "-c"],
        "Cmd": [script],
        "User": "web",
        "Env": ["PATH=/bin", "FROM=image", "LEVEL=image"],
        "WorkingDir": "/home/web",
        "StopSignal": "SIGINT",
        "Volumes": {"/data": {}},
        "ExposedPorts": {"80/tcp": {}},
    }
    images.layout(lab.path("/tmp/images/box"), config)
    for name in ("one", "two"):
        text = f'[package]\nname = "{name}"\nversion = "1"\nrootfs = "{root}"\n'
        text += 'oci = "/tmp/images/box"\n[environment]\nLEVEL = "manifest"\n'
        lab.write(f"/tmp/packages/{name}/manifest.toml", text)
    before = sorted(str(path) for path in lab.path(root).rglob("*"))
    lab.niso("activate", "/tmp/packages/one", "/tmp/packages/two")
    for name in ("one", "two"):
        said = lab.wait_for(lambda name=name: "kept" in (t := lab.niso("logs", name).stdout) and t)
        lines = said.splitlines()
        assert lines[0].startswith("uid=33(web) gid=44(web)") and "/home/web" in lines
        assert {"FROM=image", "LEVEL=manifest", "PATH=/bin"} <= set(lines)
        assert "/bin/x: Read-only file system" in said
    assert sorted(str(path) for path in lab.path(root).rglob("*")) == before
    assert json.loads(lab.niso("net", "ports", "--json").stdout) == []
    # the image is needed for the activation alone
    lab.run("rm", "-r", "/tmp/images")
    lab.niso("restart", "one")
    lab.niso("deactivate", "two")
    lab.niso("activate", "two")
    assert "got INT" in lab.niso("logs", "one").stdout
    assert "package.oci" in refused(lab, "activate", "/tmp/packages/one")
    text = lab.path("/tmp/packages/two/manifest.toml").read_text()
    for bad in ("/", "/var/lib"):
        changed = text.replace(root, bad).replace('oci = "/tmp/images/box"', "")
        lab.write("/tmp/packages/two/manifest.toml", changed + '[binary]\nentrypoint = "sh"\n')
        assert "package.rootfs" in refused(lab, "activate", "/tmp/packages/two")


# --- again ------------------------------------------------------------------------------------------------------------


@pytest.mark.rootless
def test_changed_networks_move_the_endpoints(lab: Lab) -> None:
    back = on("backend")
    lab.niso("activate", idle(lab, "api", network=back), idle(lab, "peer", network=back))
    lab.niso("activate", idle(lab, "api", network={"networks": ["backend", "frontend"]}))
    assert inside(lab, "api", "eth1")["addr_info"][0]["local"] == "10.99.2.2"
    assert host_end(lab, "api", "eth1")["master"] == "niso-frontend"
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    assert [link["ifname"] for link in lab.ip_json("link", netns="niso-api")] == ["lo", "eth0"]
    assert not [link for link in lab.ip_json("link") if link.get("master") == "niso-frontend"]
    lab.niso("activate", idle(lab, "api", network=on("frontend")))
    assert inside(lab, "api", "eth0")["addr_info"][0]["local"] == "10.99.2.2"
    assert host_end(lab, "api")["master"] == "niso-frontend"
    assert lab.ip_json("route", "show", "default", netns="niso-api")[0]["gateway"] == "10.99.2.1"
    ports = [link["ifname"] for link in lab.ip_json("link", "show", "master", "niso-backend")]
    assert ports == [host_end(lab, "peer")["ifname"]]
    assert "api" not in lab.niso("exec", "peer", "--", "cat", "/etc/hosts").stdout
    assert "peer" not in lab.niso("exec", "api", "--", "cat", "/etc/hosts").stdout


def test_process_that_ended_for_good_leaves_its_service_active(lab: Lab) -> None:
    script = ("sh", "-c", "echo begin; sleep 0.4; exit 3")
    network = {"ports": ["8080:80"]}
    lab.niso("activate", package(lab, "job", *script, service={"restart": "no"}, network=network))
    lab.wait_for(lambda: ps(lab, "job")["status"] == "exited (3)")
    assert inside(lab, "job", "eth0")["addr_info"][0]["local"] == "10.99.0.2"
    published = "job 0.0.0.0:8080 80 tcp"
    assert lab.niso("net", "ports").stdout.splitlines()[1].split() == published.split()
    assert_whole(lab)  # an end for good is as it should be
    lab.niso("restart", "job")
    assert lab.niso("logs", "job").stdout == "begin\nbegin\n"
    lab.wait_for(lambda: ps(lab, "job")["status"] == "exited (3)")
    assert lab.niso("activate", "job").stdout.startswith("job: active")
    assert lab.niso("logs", "job").stdout == "begin\n" * 3


# --- the end ----------------------------------------------------------------------------------------------------------


def test_remove_leaves_the_host_as_before_the_first_activation(lab: Lab) -> None:
    """Also where much no longer exists."""
    before = snapshots.take(lab)
    assert not before.pop("store")
    both = {"networks": ["backend", "frontend"], "ports": ["8080:80"]}
    for is_damaged in (False, True):
        lab.niso("activate", echo(lab, "api", network=both))
        lab.niso("activate", idle(lab, "worker", network=on("backend")))
        answer(lab, HOST, 8080, "client")
        if is_damaged:
            lab.run("kill", "-9", str(pid_of(lab, "api")))
            lab.run("nft", "flush", "ruleset")
            lab.run("ip", "netns", "delete", "niso-api")
            lab.run("ip", "link", "delete", "niso-frontend")
            lab.run("rm", "-r", "/run/niso/hosts", "/tmp/packages/api")
        else:
            lab.niso("deactivate", "--all")
        lab.niso("remove", "api", "worker")
        after = snapshots.take(lab)
        store = after.pop("store")
        assert {table: rows for table, rows in store.items() if rows and table != "meta"} == {}
        assert snapshots.differences(before, after) == []


def test_process_gets_the_stop_signal_of_its_manifest(lab: Lab) -> None:
    script = (
        'trap "echo got INT; exit 0" INT; trap "echo got TERM" TERM; while :; do sleep 0.1; done'
    )
    keys = {"stop_signal": "SIGINT", "stop_timeout": "20s"}
    lab.niso("activate", package(lab, "api", "sh", "-c", script, service=keys))
    for number, command in enumerate(("restart", "deactivate"), 1):
        lab.niso(command, "api")
        assert lab.niso("logs", "api").stdout == "got INT\n" * number


def test_activation_in_a_mount_namespace_of_its_own_warns_that_names_are_hidden(lab: Lab) -> None:
    assert "mount namespace" not in lab.niso("activate", idle(lab, "api")).stderr
    private = ("unshare", "--mount", "--propagation", "slave", "niso", "activate")
    done = lab.run(*private, idle(lab, "web"))
    assert "niso runs in a mount namespace of its own" in done.stderr
    assert " /run/netns/niso-api " in (mounts := lab.run("cat", "/proc/self/mountinfo").stdout)
    assert " /run/netns/niso-web " not in mounts
    shared = ("unshare", "--mount", "--propagation", "unchanged", "niso", "activate")
    assert "mount namespace" not in lab.run(*shared, idle(lab, "db")).stderr
    assert lab.run("ip", "netns", "exec", "niso-db", "true").returncode == 0
