"""Test volumes of real services: persistence, ownership, and confinement."""

from __future__ import annotations

import json
import os

import pytest
from conftest import Lab
from services import BUSYBOX, idle, inspect, namespace, package, pid_of, ps, refused
from volume_services import KEPT, sh, with_volumes


def ok(lab: Lab, name: str, script: str) -> bool:
    return lab.niso("exec", name, "--", BUSYBOX, "sh", "-c", script, check=False).returncode == 0


BOTH = pytest.mark.parametrize("rootfs", [False, True], ids=["host's /usr", "own rootfs"])


# --- named -----------------------------------------------------------------------------------------------------------


@BOTH
def test_named_volume_belongs_to_the_service_and_outlives_it(lab: Lab, rootfs: bool) -> None:
    folder = with_volumes(lab, "api", rootfs, data={"mount": "/data/deep"})
    lab.niso("activate", folder)
    assert sh(
        lab, "api", "echo one >/data/deep/file; stat -c '%a %u %g' /data/deep; id -u"
    ).split() == ["700", "1900000000", "1900000000", "1900000000"]
    assert lab.run("stat", "-c", "%a %u", f"{KEPT}/api/data").stdout == "700 1900000000\n"
    assert lab.run("stat", "-c", "%a %u", f"{KEPT}/api").stdout == "700 0\n"
    lab.niso("restart", "api")
    assert sh(lab, "api", "cat /data/deep/file") == "one\n"
    lab.run("kill", "-9", str(pid_of(lab, "api")))
    lab.wait_for(
        lambda: inspect(lab, "api")["restarts"] == 1 and ps(lab, "api")["status"] == "running"
    )
    assert sh(lab, "api", "cat /data/deep/file") == "one\n"
    lab.niso("deactivate", "api")
    lab.niso("activate", "api")
    assert sh(lab, "api", "cat /data/deep/file; echo two >/data/deep/file") == "one\n"
    lab.niso("remove", "api")
    assert lab.run("cat", f"{KEPT}/api/data/file").stdout == "two\n"
    lab.niso("activate", folder)
    assert sh(lab, "api", "cat /data/deep/file") == "two\n"
    # others have volumes of their own, by service and by name, and the next mount begins with the next start
    pid, home = pid_of(lab, "api"), namespace(lab, "api")
    more = {"data": {"mount": "/other"}, "more": {"mount": "/more"}}
    lab.niso("activate", with_volumes(lab, "api", rootfs, **more), with_volumes(lab, "b", **more))
    assert pid_of(lab, "api") != pid and namespace(lab, "api") == home
    assert sh(lab, "api", "cat /other/file; ls /more") == "two\n"
    assert sh(lab, "b", "ls /other") == ""
    lab.niso("remove", "api")
    lab.niso("remove", "--volumes", "api")
    assert not lab.path(f"{KEPT}/api").exists() and lab.path(f"{KEPT}/b/data").exists()
    assert "api" in refused(lab, "remove", "--volumes", "api")
    refused(lab, "remove", "--volumes", "../logs")


@BOTH
@pytest.mark.parametrize("read_only", [True, False])
def test_rootfs_and_host_are_never_written_to(lab: Lab, rootfs: bool, read_only: bool) -> None:
    folder = with_volumes(
        lab, "api", rootfs, data={"mount": "/new/place"}, x={"mount": "/etc/app", "tmpfs": True}
    )
    text = lab.path(f"{folder}/manifest.toml").read_text()
    lab.write(
        f"{folder}/manifest.toml", text + f"[isolation]\nread_only = {str(read_only).lower()}\n"
    )
    lab.niso("activate", folder)
    assert ok(lab, "api", "echo x >/new/place/file && echo x >/etc/app/file")
    assert not lab.path("/new").exists() and not lab.path("/etc/app").exists()
    if rootfs:
        assert not lab.path(f"{folder}/rootfs/new").exists()
        assert not lab.path(f"{folder}/rootfs/etc/app").exists()


DATABASE = """
[ -e /data/begun ] && [ ! -e /data/whole ] && { echo half made; exit 1; }
echo x >/data/begun
[ -e /data/whole ] || { sleep "$0"; echo x >/data/whole; }
exec sleep 100000
"""
"""A server that, like many databases, cannot use files whose creation was interrupted."""


def test_volume_that_a_failed_stack_created_is_deleted_and_an_older_one_stays(lab: Lab) -> None:
    """The database creates its files slowly, and is killed because another service fails."""
    data = {"data": {"mount": "/data"}}
    entry = '[stack]\nname = "shop"\n'
    for name in ("db", "web"):
        entry += f'[[service]]\nname = "{name}"\npackage = "./{name}"\n'
    lab.write("/tmp/packages/stack.toml", entry)
    sh_c = (BUSYBOX, "sh", "-c")
    package(lab, "db", *sh_c, DATABASE, "300", volumes=data)
    sick = {"command": ["/bin/false"], "interval": "200ms", "retries": 1}
    package(lab, "web", *sh_c, "sleep 100", volumes=data, healthcheck=sick)
    said = lab.niso("stack", "up", "/tmp/packages", check=False)
    assert said.returncode == 1
    assert "the volume 'data' that it created is deleted with its files" in said.stderr
    assert "web: the activation is undone" not in said.stderr, "its volume had no file"
    assert lab.run("ls", "-A", KEPT).stdout == ""
    package(lab, "db", *sh_c, DATABASE, "0", volumes=data)
    idle(lab, "web", volumes=data)
    lab.niso("stack", "up", "/tmp/packages")
    lab.wait_for(lambda: ok(lab, "db", "test -e /data/whole"))
    # volumes that existed before are never deleted, but the new one of the same service is
    package(lab, "web", "/bin/false", volumes=data | {"new": {"mount": "/new"}})
    refused(lab, "stack", "up", "/tmp/packages")
    assert lab.run("ls", "-A", f"{KEPT}/db", f"{KEPT}/web").stdout.split().count("data") == 2
    assert not lab.path(f"{KEPT}/web/new").exists()
    assert ok(lab, "db", "test -e /data/whole") and ok(lab, "web", "test -d /data")
    lab.niso("remove", "web", "db")
    refused(lab, "activate", "/tmp/packages/web")
    assert lab.path(f"{KEPT}/web/data").exists(), "also if nothing was written to it"


def test_uid_of_a_volume_that_is_kept_is_given_to_nobody_else(lab: Lab) -> None:
    folder = with_volumes(lab, "api", data={"mount": "/data"})
    lab.niso("activate", folder)
    sh(lab, "api", "echo x >/data/file")
    lab.niso("remove", "api")
    lab.niso("activate", idle(lab, "other"), idle(lab, "more"), folder)
    uids = [int(sh(lab, name, "id -u")) for name in ("api", "other", "more")]
    assert uids == [1_900_000_000, 1_900_000_001, 1_900_000_002]
    assert sh(lab, "api", "cat /data/file") == "x\n"
    lab.niso("remove", "--volumes", "api")
    lab.niso("activate", idle(lab, "last"))
    assert sh(lab, "last", "id -u") == "1900000000\n"


def test_volumes_that_come_from_another_host_are_given_to_the_service_of_their_name(
    lab: Lab,
) -> None:
    """A uid has another service there: the volume of db is readable by db, and by no other."""
    lab.niso("activate", idle(lab, "first"))
    lab.run("sh", "-c", f"mkdir -p {KEPT}/db && cp -a $0 {KEPT}/db/data", moved_volume(lab))
    host = "/tmp/srv"
    lab.run("sh", "-c", f"mkdir {host} && chown 1900000000 {host}")
    folder = with_volumes(lab, "db", data={"mount": "/data"}, host={"mount": "/srv", "host": host})
    said = lab.niso("activate", folder, "-v").stderr
    assert "give volume db/data to uid 1900000001" in said
    listing = "find /data -exec stat -c '%n %u %g' {} +"
    assert dict(line.split(" ", 1) for line in sh(lab, "db", listing).splitlines()) == {
        "/data": "1900000001 1900000001",
        "/data/a": "1900000001 1900000001",
        "/data/a/file": "1900000001 1900000001",
        "/data/a/link": "1900000001 1900000001",
        "/data/of-root": "0 0",
    }
    assert lab.run("stat", "-c", "%u", host).stdout == "1900000000\n", "a path of the host"
    assert lab.run("stat", "-c", "%u", "/tmp/precious").stdout == "1900000000\n", "behind a link"
    assert sh(lab, "db", "cat /data/a/file") == "moved\n"
    lab.niso("deactivate", "db")
    # files that were copied into the volume, whose folder has the right owner
    lab.run("chown", "-R", "1900000000", f"{KEPT}/db/data/a")
    lab.run("chattr", "+i", f"{KEPT}/db/data/a/file")
    assert "cannot give volume 'data' to uid 1900000001" in refused(lab, "activate", "db")
    lab.run("chattr", "-i", f"{KEPT}/db/data/a/file")
    lab.niso("activate", "db")
    owners = sh(lab, "db", "stat -c %u /data /data/a /data/a/file")
    assert owners == "1900000001\n" * 3, "the second start goes on after the first"
    lab.niso("deactivate", "db")
    lab.run("chown", "1900000000", f"{KEPT}/db/data")
    lab.run("mkdir", f"{KEPT}/db/data/m")
    lab.run("mount", "--bind", host, f"{KEPT}/db/data/m")
    assert f"umount {KEPT}/db/data/m" in refused(lab, "activate", "db")
    assert lab.run("stat", "-c", "%u", host).stdout == "1900000000\n"


def moved_volume(lab: Lab) -> str:
    """Make a volume as a copy of another host's state folder has it; return its path."""
    lab.write("/tmp/precious", "")
    lab.write("/tmp/moved/a/file", "moved\n")
    lab.write("/tmp/moved/of-root", "")
    lab.run("ln", "-s", "/tmp/precious", "/tmp/moved/a/link")
    lab.run("chown", "-hR", "1900000000:1900000000", "/tmp/moved", "/tmp/precious")
    lab.run("chown", "0:0", "/tmp/moved/of-root")
    return "/tmp/moved"


# --- remove --volumes ------------------------------------------------------------------------------------------------


def test_remove_with_volumes_deletes_them_and_follows_no_link(lab: Lab) -> None:
    lab.write("/tmp/precious/file", "precious")
    lab.niso(
        "activate",
        with_volumes(lab, "api", data={"mount": "/data"}),
        with_volumes(lab, "other", data={"mount": "/d"}),
    )
    sh(lab, "other", "echo x >/d/file")
    sh(
        lab,
        "api",
        "mkdir -p /data/a/b && ln -s /tmp/precious /data/a/link && ln -s ../../../other /data/up && mkfifo /data/p",
    )
    running = lab.popen("niso", "exec", "api", "--", BUSYBOX, "sleep", "1000")
    lab.wait_for(lambda: "sleep 1000" in sh(lab, "api", "ps"))
    done = lab.niso("remove", "-v", "--volumes", "api")
    assert "delete the volumes of api: data" in done.stderr
    assert running.wait(10) != 0
    assert not lab.path(f"{KEPT}/api").exists()
    assert lab.path("/tmp/precious/file").read_text() == "precious"
    assert sh(lab, "other", "cat /d/file") == "x\n"


def test_volumes_are_listed_with_their_sizes_and_removed_one_by_one(lab: Lab) -> None:
    both = {"data": {"mount": "/data"}, "more": {"mount": "/more"}}
    lab.niso("activate", with_volumes(lab, "api", **both), with_volumes(lab, "db", **both))
    write = f"head -c 3000000 /dev/urandom >/data/big; {BUSYBOX} ln /data/big /data/again"
    sh(lab, "db", write)
    (shown,) = json.loads(lab.niso("volume", "inspect", "db/data").stdout)
    assert shown.pop("size") // 100_000 == 30, "a file with two names is counted once"
    assert shown == {
        "volume": "db/data",
        "service": "db",
        "status": "active",
        "mount": "/data",
        "owner": 1900000001,
        "files": 2,
        "path": f"{KEPT}/db/data",
    }
    assert "'db' is active" in refused(lab, "volume", "remove", "db/data")
    for wrong in ("db", "../db/data", "db/", "db/../api", "db/data/big", "db/.data.new", "/db"):
        assert lab.niso("volume", "remove", wrong, check=False).returncode in (1, 2)
    lab.niso("deactivate", "db")
    assert "'api' is active" in refused(lab, "volume", "remove", "db/data", "api/data")
    assert lab.niso("volume", "remove", "db/data").stdout.startswith("db/data: removed  2.9 MB")
    lab.niso("remove", "api")
    lines = [line.split()[:3] for line in lab.niso("volume", "list").stdout.splitlines()[1:]]
    assert lines == [
        ["api/data", "removed", "-"],
        ["api/more", "removed", "-"],
        ["db/more", "inactive", "/more"],
    ]
    lab.run("sh", "-c", f"mkdir /srv/big && mv {KEPT}/db/more /srv/big && touch {KEPT}/db/stray")
    lab.run("ln", "-s", "/srv/big/more", f"{KEPT}/db/more")  # as root moves it to another disk
    assert "db/more" in lab.niso("volume", "list").stdout
    lab.niso("save", "db", "-o", "/tmp/db.niso")
    listed = lab.run("sh", "-c", "zstd -qdc /tmp/db.niso | tar tv").stdout
    (line,) = [one for one in listed.splitlines() if one.endswith("/volumes/more/")]
    assert line.startswith("drwx")
    lab.run("sh", "-c", f"rm {KEPT}/db/stray {KEPT}/db/more && mv /srv/big/more {KEPT}/db/more")
    lab.niso("volume", "remove", "api/data", "api/more")
    assert not lab.path(f"{KEPT}/api").exists() and lab.path(f"{KEPT}/db/more").exists()


def test_mount_of_the_host_in_a_volume_is_not_emptied(lab: Lab) -> None:
    lab.niso("activate", with_volumes(lab, "api", data={"mount": "/data"}))
    lab.write("/tmp/precious/file", "precious")
    lab.run("mkdir", f"{KEPT}/api/data/m")
    lab.run("mount", "--bind", "/tmp/precious", f"{KEPT}/api/data/m")
    said = refused(lab, "remove", "--volumes", "api")
    assert (
        f"something is mounted at {KEPT}/api/data/m" in said and f"umount {KEPT}/api/data/m" in said
    )
    assert ps(lab, "api")["status"] == "running"
    lab.run("umount", f"{KEPT}/api/data/m")
    lab.niso("remove", "--volumes", "api")
    assert lab.path("/tmp/precious/file").exists()


# --- paths of the host -----------------------------------------------------------------------------------------------


@BOTH
def test_folder_and_file_of_the_host_are_shown(lab: Lab, rootfs: bool) -> None:
    lab.write("/tmp/srv/conf/a", "from the host\n")
    lab.run("chmod", "777", "/tmp/srv/conf")
    folder = with_volumes(
        lab,
        "api",
        rootfs,
        conf={"mount": "/etc/app", "host": "/tmp/srv/conf"},
        file={"mount": "/etc/app.conf", "host": "/tmp/srv/conf/a", "mode": "ro"},
        run={"mount": "/run/app/a", "host": "/tmp/srv/conf/a"},
    )
    lab.niso("activate", folder)
    assert (
        sh(lab, "api", "cat /etc/app/a /etc/app.conf /run/app/a; echo b >/etc/app/b")
        == "from the host\n" * 3
    )
    assert lab.path("/tmp/srv/conf/b").read_text() == "b\n"
    assert lab.run("stat", "-c", "%u", "/tmp/srv/conf").stdout == "0\n"


@pytest.mark.parametrize("user", ["0", "1000:2000"])
def test_volume_that_the_services_user_cannot_write_to_is_a_warning(lab: Lab, user: str) -> None:
    """The kernel says which: the service tries each."""
    forms = ("0:0 755", "0:0 757", "1000:0 755", "1000:0 577", "0:2000 775", "0:2000 757")
    volumes = {}
    for number, form in enumerate(forms):
        owner, mode = form.split()
        host = f"/tmp/srv/{number}"
        lab.run("sh", "-c", f"mkdir -p {host} && chown {owner} {host} && chmod {mode} {host}")
        volumes[f"v{number}"] = {"mount": f"/v{number}", "host": host}
    shown = {"ro": {"mount": "/ro", "host": "/tmp/srv/0", "mode": "ro"}}
    folder = idle(lab, "api", volumes=volumes | shown, service={"user": user})
    warned = lab.niso("activate", folder).stderr
    refused = [name for name in volumes if not ok(lab, "api", f"touch /{name}/x")]
    said = [line.split(": ")[3] for line in warned.splitlines() if "cannot write to" in line]
    assert said == [f"volumes.{name}.host" for name in refused] and 0 < len(said) < len(forms)
    # one that ends because of it says so too
    test = "touch /v0/y && exit 0; echo no; exit 1"
    dying = package(
        lab,
        "dying",
        BUSYBOX,
        "sh",
        "-c",
        test,
        volumes={"v0": volumes["v0"]},
        service={"user": "5"},
    )
    error = lab.niso("activate", dying, check=False).stderr
    assert "\n  hint: its user, uid 5, cannot write to /tmp/srv/0 (volumes.v0)\n" in error


def test_read_only_is_read_only_below_submounts_too(lab: Lab) -> None:
    lab.run("mkdir", "-p", "/tmp/srv/sub")
    lab.run("mount", "-t", "tmpfs", "tmpfs", "/tmp/srv/sub")
    lab.run("chmod", "777", "/tmp/srv", "/tmp/srv/sub")
    lab.run("sh", "-c", "echo x >/tmp/srv/sub/file; chmod 666 /tmp/srv/sub/file")
    folder = with_volumes(
        lab,
        "api",
        ro={"mount": "/ro", "host": "/tmp/srv", "mode": "ro"},
        rw={"mount": "/rw", "host": "/tmp/srv", "mode": "rw"},
    )
    lab.niso("activate", folder)
    assert sh(lab, "api", "cat /ro/sub/file") == "x\n"
    for path in ("/ro/new", "/ro/sub/new", "/ro/sub/file"):
        assert not ok(lab, "api", f"echo y >{path}"), path
    assert ok(lab, "api", "echo y >/rw/new && echo y >/rw/sub/new")


def test_mounts_of_volumes_are_private_and_without_setuid_and_devices(lab: Lab) -> None:
    """Mounts of the host and of the service do not reach each other."""
    lab.run("mkdir", "-p", "/tmp/srv/late", "/tmp/srv/sub")
    lab.run("mount", "--bind", "/tmp/srv", "/tmp/srv")
    lab.run("mount", "--make-shared", "/tmp/srv")
    lab.run("mount", "-t", "tmpfs", "tmpfs", "/tmp/srv/sub")
    volumes = {
        "host": {"mount": "/host", "host": "/tmp/srv"},
        "named": {"mount": "/named"},
        "memory": {"mount": "/memory", "tmpfs": True},
    }
    lab.niso("activate", with_volumes(lab, "api", **volumes))
    lab.run("mount", "-t", "tmpfs", "tmpfs", "/tmp/srv/late")
    lab.write("/tmp/srv/late/file", "x")
    assert sh(lab, "api", "ls /host/late") == ""
    lines = lab.run("cat", f"/proc/{pid_of(lab, 'api')}/mountinfo").stdout.splitlines()
    for point in ("/host", "/host/sub", "/named", "/memory"):
        (mount,) = [line for line in lines if line.split(" ")[4] == point]
        assert "shared:" not in mount and "master:" not in mount
        assert {"nosuid", "nodev"} <= set(mount.split(" ")[5].split(",")), mount
        assert "noexec" not in mount.split(" ")[5]


def test_volume_of_a_hostile_shape_is_removed(lab: Lab) -> None:
    """Nested deeper than there are descriptors, and immutable."""
    script = """
import os
os.chdir("/data")
for _ in range(1500):
    os.mkdir("deep")
    open("file", "w").close()
    os.chdir("deep")
os.system("cd /data; chattr +i file deep; touch log; chattr +a log; mkdir locked; touch locked/in; chattr +i locked .")
os.execv("/usr/bin/busybox", ["busybox", "sleep", "1000"])
"""
    folder = package(
        lab,
        "evil",
        "/usr/bin/python3",
        "-ISc",
        script,
        volumes={"data": {"mount": "/data"}},
        service={"user": "0:0"},
        isolation={"capabilities": ["LINUX_IMMUTABLE"]},
    )
    lab.niso("activate", folder)
    kept = "/var/lib/niso/volumes/evil/data"
    lab.wait_for(lambda: "i---" in lab.run("lsattr", "-d", kept).stdout, 20)
    (shown,) = json.loads(lab.niso("volume", "inspect", "evil/data").stdout)
    assert shown["files"] == 3_003
    lab.niso("save", "evil", "-o", "/tmp/evil.niso")
    assert lab.run("sh", "-c", "zstd -qdc /tmp/evil.niso | tar t | wc -l").stdout > "3003"
    assert lab.run("rm", "-rf", kept, check=False).returncode != 0
    lab.run("prlimit", "--nofile=256", "niso", "remove", "--volumes", "evil")
    assert lab.run("ls", "/var/lib/niso/volumes").stdout == ""


# --- tmpfs -----------------------------------------------------------------------------------------------------------


@BOTH
def test_tmpfs_has_its_size_and_is_empty_at_each_start(lab: Lab, rootfs: bool) -> None:
    lab.niso(
        "activate",
        with_volumes(lab, "api", rootfs, tmp={"mount": "/scratch", "tmpfs": True, "size": "1M"}),
    )
    assert ok(lab, "api", "dd if=/dev/zero of=/scratch/a bs=1k count=512")
    assert not ok(lab, "api", "dd if=/dev/zero of=/scratch/b bs=1k count=1024")
    assert sh(lab, "api", "stat -c '%a %u' /scratch") == "700 1900000000\n"
    lab.niso("restart", "api")
    assert sh(lab, "api", "ls /scratch") == ""


# --- mount points ----------------------------------------------------------------------------------------------------


def test_link_of_the_rootfs_does_not_lead_out_of_it(lab: Lab) -> None:
    folder = with_volumes(lab, "api", True, data={"mount": "/out/data"}, more={"mount": "/link"})
    lab.run("mkdir", "-p", "/tmp/outside", f"{folder}/rootfs/inside", f"{folder}/rootfs/tmp2")
    for link, target in (("out", "/tmp2/../../../../tmp2"), ("link", "../../../../../inside")):
        os.symlink(target, lab.path(f"{folder}/rootfs/{link}"))
    lab.niso("activate", folder)
    sh(lab, "api", "echo x >/out/data/file; echo y >/link/file")
    assert sh(lab, "api", "cat /tmp2/data/file /inside/file") == "x\ny\n"
    assert (
        lab.run(
            "find", "/tmp/outside", f"{folder}/rootfs/inside", f"{folder}/rootfs/tmp2", "-type", "f"
        ).stdout
        == ""
    )


def test_mount_points_are_where_links_of_the_assembled_root_lead_and_hide_nisos_tmpfs(
    lab: Lab,
) -> None:
    """The user of the manifest owns what is made, and a new user does not take it."""
    volumes = {
        "run": {"mount": "/var/run/app"},
        "tmp": {"mount": "/tmp"},
        "data": {"mount": "/data"},
    }
    api = {"volumes": volumes, "binary": {"working_dir": "/data"}}
    lab.niso("activate", idle(lab, "api", service={"user": "1234:5678"}, **api))
    sh(lab, "api", "echo x >/run/app/file; echo y >/tmp/file")
    assert lab.path(f"{KEPT}/api/run/file").exists()
    assert not lab.path("/run/app").exists()
    lab.niso("restart", "api")
    assert sh(lab, "api", "cat /tmp/file /run/app/file; pwd") == "y\nx\n/data\n"
    assert sh(lab, "api", "stat -c '%a %u %g' /data") == "700 1234 5678\n"
    lab.niso("activate", idle(lab, "api", service={"user": "0"}, **api))
    assert sh(lab, "api", "stat -c '%a %u %g' /data") == "700 1234 5678\n"
