"""Test niso save and niso load with real services: data, policies, addresses, and hostile archives."""

from __future__ import annotations

import io
import json
import signal
import tarfile
from typing import Any

from conftest import Lab
from services import BUSYBOX, answer, ask, busybox_rootfs, echo, idle, inspect, on, package, ps
from volume_services import KEPT, sh

VOLUME = {"data": {"mount": "/data"}}
DEFAULT = "system.posix_acl_default"
ACL = (
    "import os, struct; no = 2**32 - 1; acl = struct.pack('<I' + 'HHI' * 5, 2, 1, 7, no,"
    " 2, 7, 1234, 4, 0, no, 16, 7, no, 32, 0, no)"
)
"""Code that makes an access control list: all rights for the owner and for uid 1234 (acl(5))."""
BACK = {"networks": ["back", "front"]}


def saved(lab: Lab, *words: str) -> str:
    return str(lab.niso("save", *words, "-o", "/tmp/x.niso").stdout)


def forget(lab: Lab) -> None:
    """Leave nothing of niso: the host is then as empty as another one."""
    lab.run("sh", "-c", "niso deactivate --all; rm -rf /var/lib/niso/*; niso reset --yes")
    lab.run("rm", "-rf", "/tmp/packages", "/tmp/token")


def town(lab: Lab) -> None:
    """A database that only api may reach, on an internal network, with a secret; and an outsider."""
    lab.niso("net", "create", "--internal", "--multicast", "back", "--subnet", "10.77.0.0/24")
    lab.write("/tmp/token", "s3cret\n")
    lab.run("chmod", "600", "/tmp/token")
    first = idle(lab, "first", network=on("back"))
    more = {"volumes": {"data": {"mount": "/data"}}, "secrets": {"token": {"file": "/tmp/token"}}}
    api = idle(lab, "api", network={**BACK, "ports": ["8080:80"]})
    lab.niso("activate", first, echo(lab, "db", network=BACK, **more), api)
    # a later change of the policy needs no restart
    policy = {**BACK, "policy": {"allow_from": ["api", "10.77.0.200"]}}
    lab.niso("activate", echo(lab, "db", network=policy, **more))
    script = "mkdir /data/a; echo one >/data/a/file; ln -s /etc/passwd /data/link; chmod 640 /data/a/file"
    sh(lab, "db", script)


def test_services_are_restored_on_an_empty_host_as_they_were(lab: Lab) -> None:
    town(lab)
    lab.niso("remove", "first")
    before = {name: ps(lab, name)["address"] for name in ("db", "api")}
    assert before["db"][0] == "10.77.0.3", "not the first address"
    sh(lab, "db", "ln /data/a/file /data/again; truncate -s 50M /data/holes")
    mark = r"import os; os.setxattr('/data/a/file', 'user.niso', b'\xff\0=\n1')"
    lab.niso("exec", "db", "--", "/usr/bin/python3", "-c", mark)
    # every new file in the folder would get this list, but the saved files did not
    lab.run("python3", "-c", f"{ACL}; os.setxattr('{KEPT}/db/data/a', {DEFAULT!r}, acl)")
    listing = "cd /data && find . -exec stat -c '%n %a %F %s %h' {} + | sort"
    files = sh(lab, "db", listing)
    assert "db, api" in saved(lab, "db", "api", "--secrets")
    assert lab.run("stat", "-c", "%a", "/tmp/x.niso").stdout == "600\n"
    forget(lab)
    lab.niso("load", "/tmp/x.niso")
    assert {name: ps(lab, name)["address"] for name in ("db", "api")} == before
    assert sh(lab, "db", listing) == files and sh(lab, "db", "cat /data/a/file") == "one\n"
    assert sh(lab, "db", "stat -c %b /data/holes") == "0\n"
    show = (
        "import os; print(os.getxattr('/data/a/file', 'user.niso'), os.listxattr('/data/a/file'))"
    )
    said = lab.niso("exec", "db", "--", "/usr/bin/python3", "-c", show).stdout
    assert said == "b'\\xff\\x00=\\n1' ['user.niso']\n"
    same = f"{ACL}; print(os.getxattr('{KEPT}/db/data/a', {DEFAULT!r}) == acl)"
    assert lab.run("python3", "-c", same).stdout == "True\n"
    assert sh(lab, "db", "cat /run/secrets/token") == "s3cret\n"
    lab.niso("activate", idle(lab, "other", network=on("back")))
    assert answer(lab, before["db"][0], 80, "niso-api"), "the policy is that of the last activation"
    assert not ask(lab, before["db"][0], 80, "niso-other")
    shown = lab.niso("net", "inspect", "back", "--json").stdout
    assert '"internal": true' in shown and '"multicast": true' in shown
    assert lab.niso("net", "check").stdout == "OK: the kernel matches the configuration\n"


def test_services_are_loaded_next_to_those_that_were_saved(lab: Lab) -> None:
    town(lab)
    lab.niso("activate", idle(lab, "later"))
    lab.niso("deactivate", "later")
    saved(lab, "db", "api", "later")
    said = lab.niso("save", "db", "-o", "/dev/null", check=False)
    assert said.returncode == 1 and "/dev/null is not a regular file" in said.stderr
    said = lab.niso("load", "/tmp/x.niso", check=False)
    assert said.returncode == 1 and "db: a service of this name exists" in said.stderr
    said = lab.niso("load", "/tmp/x.niso", "--as", "test")
    assert "network test-back gets" in said.stderr and "host port 8080/tcp is taken" in said.stderr
    assert "addresses of a network that has others here: 10.77.0.200\n" in said.stderr
    assert lab.niso("net", "check").stdout == "OK: the kernel matches the configuration\n"
    new, old = ps(lab, "test-db"), ps(lab, "db")
    assert not {*new["address"]} & {*old["address"]}
    assert ps(lab, "test-api")["ports"][0]["host_port"] != 8080
    assert sh(lab, "test-db", "cat /data/a/file") == "one\n"
    assert inspect(lab, "test-db")["user"]["uid"] != inspect(lab, "db")["user"]["uid"]
    sh(lab, "test-db", "echo two >/data/a/file")
    assert sh(lab, "db", "cat /data/a/file") == "one\n"
    loads = [lab.popen("niso", "load", "/tmp/x.niso", "--as", "twice") for _ in range(2)]
    assert sorted(load.wait(60) for load in loads) == [0, 1], "one after the other"
    assert sh(lab, "twice-db", "cat /data/a/file") == "one\n", "not removed by the one that failed"
    shown = lab.niso("net", "inspect", "test-back", "--json").stdout
    assert '"internal": true' in shown and '"multicast": true' in shown
    lab.niso("activate", idle(lab, "other", network=on("test-back")))
    assert answer(lab, new["address"][0], 80, "niso-test-api")
    assert not ask(lab, new["address"][0], 80, "niso-other")
    # the loaded stack can be applied again, and nothing changes
    folder = "/var/lib/niso/loaded/stacks/test"
    assert "unchanged" in lab.niso("stack", "up", folder).stdout


def test_stack_with_replicas_rootfs_and_job_is_loaded_whole_or_not_at_all(lab: Lab) -> None:
    check = {"healthcheck": {"tcp": 80, "interval": "200ms"}}
    echo(lab, "web", service={"replicas": 2}, deploy={"monitor": "0s"}, **check)
    busybox_rootfs(lab, "/tmp/packages/tree/rootfs")
    package(lab, "tree", "/bin/busybox", "sleep", "1000", package={"rootfs": "rootfs"})
    package(lab, "job", BUSYBOX, "true", service={"kind": "job"})
    entry = '[stack]\nname = "shop"\n'
    for name in ("tree", "job", "web"):
        entry += f'[[service]]\nname = "{name}"\npackage = "./{name}"\n'
    lab.write("/tmp/packages/stack.toml", entry + 'depends_on = { tree = "started" }\n')
    lab.niso("stack", "up", "/tmp/packages")
    lab.niso("scale", "web=3")
    said = lab.niso("save", "web.1", check=False)
    assert said.returncode == 1 and "'web.1' is an instance of 'web'" in said.stderr
    vip = ps(lab, "web")["address"]
    pid = inspect(lab, "tree")["pid"]
    saved(lab, "--stack", "shop", "--stop")
    assert inspect(lab, "tree")["pid"] not in (None, pid), "stopped, and started again"
    assert ps(lab, "job")["status"] == "completed", "not run again"
    forget(lab)
    # a port of a service fails, so nothing stays
    lab.niso("net", "create", "niso", check=False)
    lab.run("mkdir", "-p", f"{KEPT}/web/data")
    said = lab.niso("load", "/tmp/x.niso", check=False)
    assert "web: volumes of this name exist already: data" in said.stderr
    assert not lab.path("/var/lib/niso/loaded/stacks").exists()
    assert lab.niso("ps", "--json").stdout == "[]\n"
    lab.run("rm", "-r", f"{KEPT}/web")
    lab.niso("load", "/tmp/x.niso")
    assert ps(lab, "web")["address"] == vip and ps(lab, "web")["status"] == "3/3 running"
    assert ps(lab, "tree")["status"] == "running"
    file = lab.path("/var/lib/niso/loaded/stacks/shop/stack.toml").read_text()
    assert 'depends_on = { tree = "started" }' in file
    assert {one["service"] for one in json.loads(lab.niso("ps", "--json").stdout)} == {
        "web",
        "tree",
    }


def test_load_that_fails_leaves_nothing(lab: Lab) -> None:
    """The loaded service dies at its start, because the host lacks its secret."""
    town(lab)
    saved(lab, "db", "api")
    forget(lab)
    said = lab.niso("load", "/tmp/x.niso", check=False)
    assert said.returncode == 1 and "'/tmp/token' does not exist" in said.stderr
    assert lab.niso("volume", "list", "--json").stdout == "[]\n"
    assert lab.niso("net", "list", "--json").stdout == "[]\n"
    assert lab.niso("ps", "--json").stdout == "[]\n"
    left = lab.run("find", "/var/lib/niso/loaded", "-type", "f").stdout
    assert left == ""
    # the same if it is killed: the next command removes what it made
    lab.write("/tmp/token", "s3cret\n")
    lab.run("chmod", "600", "/tmp/token")
    kill = {"NISO_FAILPOINT": "40:kill"}
    assert lab.niso("load", "/tmp/x.niso", env=kill, check=False).returncode == -9
    lab.niso("net", "repair")
    assert lab.niso("volume", "list", "--json").stdout == "[]\n"
    lab.niso("load", "/tmp/x.niso")
    assert sh(lab, "db", "cat /data/a/file") == "one\n"


def test_service_that_is_changed_while_it_is_saved_is_not_saved(lab: Lab) -> None:
    """It can crash and restart meanwhile, but no archive has half of two versions."""
    lab.niso("activate", idle(lab, "api", volumes=VOLUME))
    sh(lab, "api", "head -c 60000000 /dev/urandom >/data/big")
    wait = "for i in $(seq 600); do [ -e /tmp/go ] && break; sleep 0.1; done; cat >/tmp/x.niso"
    # killed while the service is stopped: the next command starts it
    lab.run("mkfifo", "/tmp/fifo")
    saving = lab.popen("sh", "-c", "exec niso save api --stop -o - >/tmp/fifo")
    reading = lab.popen("sh", "-c", "exec sleep 1000 </tmp/fifo")
    lab.wait_for(lambda: inspect(lab, "api")["pid"] is None, 30, "a stop")
    saving.send_signal(signal.SIGKILL)
    saving.wait(60)
    reading.send_signal(signal.SIGKILL)
    lab.niso("activate", idle(lab, "other"))
    assert ps(lab, "api")["status"] == "running"
    saving = lab.popen("sh", "-c", f"niso save api -o - 2>/tmp/said | ({wait})")
    lab.wait_for(lambda: "zstd" in lab.run("ps", "-eo", "args").stdout)
    lab.run("kill", "-9", str(inspect(lab, "api")["pid"]))
    lab.wait_for(lambda: inspect(lab, "api")["restarts"] == 1, 30, "a restart meanwhile")
    lab.niso("activate", idle(lab, "api", environment={"NEW": "1"}, volumes=VOLUME))
    lab.run("touch", "/tmp/go")
    saving.wait(60)
    said = lab.run("cat", "/tmp/said").stdout
    assert "api: another command has changed it" in said and "Traceback" not in said
    said = lab.niso("load", "/tmp/x.niso", "--as", "new", check=False)
    assert said.returncode == 1 and "is " in said.stderr


def test_damaged_and_foreign_archives_are_refused(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api", volumes={"data": {"mount": "/data"}}))
    sh(lab, "api", "head -c 200000 /dev/urandom >/data/big")
    saved(lab, "api")
    gzip = lab.run(
        "sh", "-c", "n=$(command -v niso); PATH=/none $n save api -o - | gzip -dc | tar t"
    )
    assert "services/api/volumes/data/big\n" in gzip.stdout, "gzip where zstd is missing"
    full = "n=$(command -v niso); PATH=/none $n save api -o - >/dev/full"
    said = lab.run("sh", "-c", full, check=False)
    assert said.returncode == 1 and "cannot write the archive: No space left" in said.stderr
    lab.run("sh", "-c", "niso remove --volumes api; cd /tmp; zstd -qdc x.niso >x.tar")
    whole = lab.path("/tmp/x.tar").read_bytes()
    at = whole.index(b"services/api/volumes/data/big") + 150_000
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for data, reason in (
        (whole[: len(whole) // 2], "is damaged"),
        (flipped, "does not match its checksums"),
        (whole.replace(b"uid=1900000000", b"uid=1900000007"), "does not match its checksums"),
        (b"", "is not an archive"),
    ):
        lab.path("/tmp/bad.tar").write_bytes(data)
        lab.run("sh", "-c", "cd /tmp && gzip -kf bad.tar && [ -s bad.tar ] || : >bad.tar.gz")
        said = lab.niso("load", "/tmp/bad.tar.gz", check=False)
        assert said.returncode == 1 and reason in said.stderr, (reason, said.stderr)
    lab.run("chown", "1000", "/tmp/x.niso")
    said = lab.niso("load", "/tmp/x.niso", check=False)
    assert said.returncode == 1 and "belongs to uid 1000" in said.stderr
    assert lab.niso("ps", "--json").stdout == "[]\n" and lab.run("ls", KEPT).stdout == ""
    lab.niso("load", "/tmp/x.niso", "--trust-owner")
    assert lab.run("stat", "-c", "%s", f"{KEPT}/api/data/big").stdout == "200000\n"


def entry(
    name: str,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    text: bytes = b"x",
    pax: dict[str, str] | None = None,
    uid: int = 0,
    as_type: bytes | None = None,
) -> Any:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.uid = as_type or kind, link, uid
    member.size = len(text) if kind == tarfile.REGTYPE else 0
    member.pax_headers = pax or {}
    return member, text


OUT = "services/api/volumes/out"
FOLDERS = [
    entry(f"services{more}", tarfile.DIRTYPE)
    for more in ("", "/api", "/api/volumes", "/api/volumes/out")
]
HOLES = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1000000000000"}
ESCAPES = {
    "parent": [entry("services/../../../../tmp/escaped")],
    "absolute": [entry("/tmp/escaped")],
    "link": [*FOLDERS, entry(f"{OUT}/a", tarfile.SYMTYPE, "/tmp"), entry(f"{OUT}/a/escaped")],
    "twice": [*FOLDERS, entry(f"{OUT}/a", tarfile.SYMTYPE, "/tmp/escaped"), entry(f"{OUT}/a")],
    "hard link": [*FOLDERS, entry(f"{OUT}/a", tarfile.LNKTYPE, "/etc/shadow")],
    "hard link to a link": [
        *FOLDERS,
        entry(f"{OUT}/a", tarfile.SYMTYPE, "/etc/shadow"),
        entry(f"{OUT}/b", tarfile.LNKTYPE, f"{OUT}/a"),
    ],
    "hard link through a link": [
        *FOLDERS,
        entry(f"{OUT}/a", tarfile.SYMTYPE, "/etc"),
        entry(f"{OUT}/b", tarfile.LNKTYPE, f"{OUT}/a/shadow"),
    ],
    "hard link to the manifest": [
        *FOLDERS,
        entry("services/api/manifest.toml"),
        entry(f"{OUT}/a", tarfile.LNKTYPE, "services/api/manifest.toml"),
    ],
    "hard link to a parent": [*FOLDERS, entry(f"{OUT}/a", tarfile.LNKTYPE, f"{OUT}/../../x")],
    "device": [*FOLDERS, entry(f"{OUT}/a", tarfile.BLKTYPE)],
    "volume is a link": [*FOLDERS[:3], entry(OUT, tarfile.SYMTYPE, "/etc")],
    "service is a link": [FOLDERS[0], entry("services/api", tarfile.SYMTYPE, "/srv")],
    "manifest is a link": [
        *FOLDERS[:2],
        entry("services/api/manifest.toml", tarfile.SYMTYPE, "/x"),
    ],
    "holes": [*FOLDERS, entry(f"{OUT}/a", text=b"1\n0\n0\n", pax=HOLES)],
    "header": [entry("x", text=b"x" * 20_000_000, as_type=tarfile.XHDTYPE)],
    "owner": [*FOLDERS, entry(f"{OUT}/a", uid=1 << 40)],
    "space": [*FOLDERS, entry(f"{OUT}/a", text=b"x" * 20_000_000)],
}


def test_archive_does_not_write_outside_its_folder_or_fill_the_disk(lab: Lab) -> None:
    lab.run("mkdir", "-p", "/var/lib/niso/loaded")
    lab.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/var/lib/niso/loaded")
    for how, members in ESCAPES.items():
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
            for member, text in (entry("niso-save.json", text=b"{}"), *members):
                tar.addfile(member, io.BytesIO(text))
        lab.path("/tmp/evil.niso").write_bytes(packed.getvalue())
        said = lab.niso("load", "/tmp/evil.niso", check=False)
        reason = REASONS.get(how, "has an entry")
        assert said.returncode == 1 and reason in said.stderr, (how, said.stderr)
        assert not lab.path("/tmp/escaped").exists(), how
        assert lab.run("ls", "-A", "/var/lib/niso/loaded").stdout == "", how


REASONS = {
    "holes": "has a sparse entry",
    "header": "has a header that is too long",
    "owner": "has an owner or a time out of range",
    "space": "needs more space than",
}
