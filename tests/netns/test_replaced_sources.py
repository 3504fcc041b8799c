"""A rootfs or a host volume that somebody replaces after the activation: never what gets mounted at a later start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Lab
from services import BUSYBOX, busybox_rootfs, idle, package, pid_of, ps, refused

FOLDER = "/tmp/packages/evil"
ROOTFS = f"{FOLDER}/fs/rootfs"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(deadline_seconds=300) as made:
        made.run("mkdir", "/tmp/outside", "/tmp/outside/tmp", "/tmp/outside/proc")
        made.write("/tmp/outside/treasure", "treasure\n")
        made.run("cp", "-a", "/bin/busybox", "/tmp/outside/busybox")
        yield made


@pytest.fixture
def evil(lab: Lab) -> Iterator[Lab]:
    """A service with a rootfs in a folder of uid 1000; manifest and package folder are root's."""
    lab.run("rm", "-rf", FOLDER)
    busybox_rootfs(lab, ROOTFS)
    lab.run("chown", "-R", "1000:1000", f"{FOLDER}/fs")
    package(
        lab,
        "evil",
        "/bin/busybox",
        "sleep",
        "100000",
        package={"rootfs": "fs/rootfs"},
        service={"restart_delay": "10ms"},
    )
    lab.niso("activate", FOLDER)
    yield lab
    lab.niso("remove", "evil", check=False)


def sees(lab: Lab) -> str:
    return str(lab.niso("exec", "evil", "--", "/bin/busybox", "ls", "/").stdout)


def test_rootfs_that_became_a_link_is_never_mounted(evil: Lab) -> None:
    lab = evil
    lab.niso("enable", "evil")
    lab.run("sh", "-ec", f"cd {FOLDER}/fs; mv rootfs was; ln -s /tmp/outside rootfs")
    lab.run("mkdir", "-p", "/tmp/seen")  # mount(2) follows it
    lab.run(
        "sh", "-ec", f"mount --bind {ROOTFS} /tmp/seen; cat /tmp/seen/treasure; umount /tmp/seen"
    )
    words = f"package.rootfs: {ROOTFS} leads through a symlink, it was the folder with inode"
    said = refused(lab, "restart", "evil")
    assert f"niso: evil: {words}" in said and f"niso activate {FOLDER}/manifest.toml" in said
    assert "treasure" not in sees(lab), "it keeps running as it was"
    found = lab.niso("net", "check", check=False)
    assert "package.rootfs of service 'evil'" in found.stdout, found.stdout
    lab.run("kill", "-KILL", str(pid_of(lab, "evil")))
    state = "/run/niso/services/evil/state.json"
    lab.wait_for(lambda: words in lab.run("cat", state).stdout, 10)
    lab.wait_for(lambda: ps(lab, "evil")["status"] == "restarting", 10)
    assert words in refused(lab, "activate", "evil")
    lab.niso("deactivate", "evil")
    assert words in refused(lab, "activate", "evil")
    assert words in refused(lab, "restore")
    assert "leaves the package's folder" in refused(lab, "activate", FOLDER)
    lab.run("sh", "-ec", f"cd {FOLDER}/fs; rm rootfs; mv was rootfs")
    lab.niso("restore")
    assert "treasure" not in sees(lab)
    assert not lab.niso("net", "check").stdout.count("rootfs")


def test_rootfs_that_is_another_folder_needs_an_activation(evil: Lab) -> None:
    lab = evil
    lab.run("sh", "-ec", f"cd {FOLDER}/fs; mv rootfs was; cp -a was rootfs; mkdir rootfs/new")
    assert f"{ROOTFS} is another folder, it was the folder" in refused(lab, "restart", "evil")
    lab.niso("activate", FOLDER)
    assert "new" in sees(lab).split()
    lab.niso("restart", "evil")
    lab.run("rm", "-rf", ROOTFS)
    assert "is gone" in refused(lab, "restart", "evil")


@pytest.mark.parametrize(
    ("home", "owner", "only_root"),
    [("/run/home", 0, True), ("/run/home", 1000, False), ("/tmp/home", 0, False)],
)
def test_host_volume_is_not_what_another_user_has_put_there(
    lab: Lab, home: str, owner: int, only_root: bool
) -> None:
    """Where only root can replace it, a new folder is what root wants; a link needs an activation."""
    lab.run("mkdir", "-p", f"{home}/data")
    lab.write(f"{home}/file", "one\n")
    lab.write(f"{home}/data/old", "")
    lab.run("chown", "-R", f"{owner}:{owner}", home)
    volumes = {
        "data": {"mount": "/data", "host": f"{home}/data"},
        "file": {"mount": "/file", "host": f"{home}/file"},
    }
    warned = lab.niso("activate", idle(lab, "bound", volumes=volumes)).stderr
    assert "can replace it" not in warned
    replace = "mv data was; mkdir data; touch data/new; echo two >f; mv f file"
    lab.run("sh", "-ec", replace, cwd=home)
    old = f"bound: volumes.file.host: {home}/file was replaced by another file"
    assert lab.niso("exec", "bound", "--", "cat", "/file").stdout == "one\n"
    assert old in lab.niso("net", "check", check=False).stderr
    if only_root:
        assert old in lab.niso("activate", "bound").stderr
    if not only_root:
        assert f"{home}/data is another folder, it was" in refused(lab, "restart", "bound")
        lab.run("sh", "-ec", "rm -r data; mv was data", cwd=home)
    lab.niso("restart", "bound")
    assert "former" not in lab.niso("net", "check").stderr
    seen = lab.niso("exec", "bound", "--", "sh", "-c", "cat /file; ls /data").stdout.split()
    assert seen == ["two", "new" if only_root else "old"]
    for name in ("data", "file"):
        lab.run("sh", "-ec", f"mv {name} kept; ln -s /tmp/outside {name}", cwd=home)
        words = f"volumes.{name}.host: {home}/{name} leads through a symlink"
        assert words in refused(lab, "restart", "bound")
        assert f"volumes.{name}.host of service" in lab.niso("net", "check", check=False).stdout
        lab.run("sh", "-ec", f"rm {name}; mv kept {name}", cwd=home)
    lab.niso("remove", "bound")
    lab.run("rm", "-rf", home)


def test_link_of_a_host_volume_is_followed_at_the_activation_alone(lab: Lab) -> None:
    lab.run(
        "sh",
        "-ec",
        "mkdir -p /tmp/v/1 /tmp/v/2; touch /tmp/v/1/one /tmp/v/2/two; ln -s 1 /tmp/v/now",
    )
    lab.run("chmod", "o+w", "/tmp/v")
    volumes = {"v": {"mount": "/v", "host": "/tmp/v/now", "mode": "ro"}}
    folder = idle(lab, "linked", volumes=volumes)
    warned = lab.niso("activate", folder).stderr
    assert (
        "linked: volumes.v.host: users other than root and the owner of /tmp/v/1 can replace it"
        in warned
    )
    assert "leads to" not in lab.niso("net", "check").stderr
    lab.run("ln", "-sfn", "2", "/tmp/v/now")
    said = "volumes.v.host: /tmp/v/now leads to /tmp/v/2 now; the service still has /tmp/v/1"
    assert said in lab.niso("net", "check", "linked").stderr
    lab.niso("restart", "linked")
    assert lab.niso("exec", "linked", "--", BUSYBOX, "ls", "/v").stdout.split() == ["one"]
    assert said not in lab.niso("activate", folder).stderr
    assert lab.niso("exec", "linked", "--", BUSYBOX, "ls", "/v").stdout.split() == ["two"]
    assert "leads to" not in lab.niso("net", "check").stderr
    lab.niso("remove", "linked")


@pytest.mark.parametrize(
    ("swap", "words"),
    [
        ("ln -s /tmp/outside {copy}", "is a link"),
        ("cp -a {copy}.was {copy}; chown 1000 {copy}", "is not niso's: other users can change it"),
        ("cp -a {copy}.was {copy}; chmod o+w {copy}", "is not niso's: other users can change it"),
    ],
)
def test_package_copy_that_was_swapped_is_not_what_runs(evil: Lab, swap: str, words: str) -> None:
    lab = evil
    (copy,) = lab.run("sh", "-c", "echo /var/lib/niso/packages/evil/*").stdout.split()
    lab.run("sh", "-ec", f"mv {copy} {copy}.was; {swap.format(copy=copy)}")
    said = refused(lab, "restart", "evil")
    assert f"niso: evil: package copy {copy} {words}" in said and f"niso activate {FOLDER}" in said
    assert "treasure" not in lab.niso("exec", "evil", "--", "/bin/busybox", "ls", "/app").stdout
    assert f"package copy {copy} of service 'evil'" in lab.niso("net", "check", check=False).stdout
    lab.niso("activate", FOLDER)
    lab.niso("restart", "evil")
    lab.niso("net", "check")
