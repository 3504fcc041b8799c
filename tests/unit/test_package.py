"""Test package copies: content, permissions, refused files."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
import traceback
from pathlib import Path

import pytest
from packages import copy_to, fingerprint, left_over, names_below, small_package
from refusals import refuses

from niso.base import files, paths
from niso.base.errors import Error, InvalidInput
from niso.manifest import load
from niso.plan.specs import ServiceSpec
from niso.runtime import package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_package(tmp_path)


def copied(folder: Path, rootfs: Path | None = None) -> Path:
    root = str(rootfs) if rootfs else None
    return Path(copy_to("api", str(folder), root, fingerprint(str(folder), root)))


def test_copy_has_the_files_and_lies_under_its_fingerprint(folder) -> None:
    copy = copied(folder)
    assert copy == Path(paths.package_dir("api")) / fingerprint(str(folder), None)
    assert names_below(copy) == ["bin", "bin/api", "manifest.toml", "secret"]
    assert (copy / "bin" / "api").read_text() == "#!/bin/sh\n"
    assert (copy / "bin" / "api").stat().st_ino != (folder / "bin" / "api").stat().st_ino


def test_copy_is_readable_for_all_and_writable_for_nobody_else(folder) -> None:
    (folder / "bin" / "api").chmod(0o6777)
    (folder / "bin").chmod(0o777)
    copy = copied(folder)
    modes = {name: stat.S_IMODE((copy / name).lstat().st_mode) for name in names_below(copy)}
    assert modes == {"bin": 0o755, "bin/api": 0o755, "manifest.toml": 0o644, "secret": 0o644}


def test_copy_keeps_times_so_that_caches_by_time_stay_true(folder) -> None:
    os.utime(folder / "secret", ns=(10**18, 10**18 + 7))
    assert (copied(folder) / "secret").stat().st_mtime_ns == 10**18 + 7


def test_same_content_is_copied_once(folder) -> None:
    first = copied(folder)
    inode = (first / "secret").stat().st_ino
    assert copied(folder) == first
    assert (first / "secret").stat().st_ino == inode


# --- a power failure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [0, 40])
def test_copy_is_on_the_disk_before_it_has_its_name(folder, monkeypatch, more) -> None:
    for number in range(more):
        (folder / "bin" / str(number)).write_text("1")
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def noted_rename(old: str, new: str) -> None:
        done.append(f"rename {new}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(package, "syncfs", lambda fd: done.append("all of it"))
    copy = copied(folder)
    named = done.index(f"rename {copy}")
    before = {path.partition(".new")[2].lstrip("/") or path for path in done[:named]}
    every = {str(path.relative_to(copy)) for path in copy.rglob("*") if not path.is_symlink()}
    temporary = f"{copy}.{os.getpid()}.new"
    assert before == (
        {"all of it"} if more else every | {temporary.partition(".new")[2] or temporary}
    )
    assert {str(copy.parent), str(copy.parent.parent)} <= set(done[named:])


@pytest.mark.parametrize("lost", [lambda path: path.write_text(""), lambda path: path.unlink()])
def test_damaged_copy_is_made_again(folder, lost) -> None:
    copy = copied(folder)
    lost(copy / "bin" / "api")
    assert copied(folder) == copy
    assert (copy / "bin" / "api").read_bytes() == (folder / "bin" / "api").read_bytes()
    assert os.listdir(copy.parent) == [copy.name]


def test_copy_whose_manifest_has_changed_since_is_good(folder) -> None:
    manifest = str(folder / "manifest.toml")
    digest = fingerprint(str(folder), None, manifest)
    copy = Path(copy_to("api", str(folder), None, digest, manifest))
    inode = copy.stat().st_ino
    (folder / "manifest.toml").write_text("[package]\n[network]\n")
    assert package.is_copied("api", digest, str(folder), None, manifest)
    copy_to("api", str(folder), None, digest, manifest)
    assert copy.stat().st_ino == inode


def test_copy_of_empty_files_alone_is_known_as_lost(folder) -> None:
    copy = copied(folder)
    assert not package.is_emptied(str(copy))
    for path in copy.rglob("*"):
        if path.is_file():
            path.write_text("")
    assert package.is_emptied(str(copy))
    assert not package.is_emptied(str(folder / "nowhere"))


# --- what is in a package ---------------------------------------------------------------------------------------------


def test_symlinks_are_copied_as_they_are_and_none_is_followed(folder) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "treasure").write_text("x")
    targets = {
        "root": "/",
        "up": "..",
        "out": str(outside),
        "dangling": "nowhere/at all",
        "loop": "loop",
    }
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    copy = copied(folder)
    assert {name: os.readlink(copy / name) for name in targets} == targets
    assert names_below(copy) == sorted(["bin", "bin/api", "manifest.toml", "secret", *targets])


def test_deleting_a_copy_follows_no_link(folder) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "treasure").write_text("x")
    (folder / "out").symlink_to(outside)
    package.delete_tree(str(copied(folder)))
    assert (outside / "treasure").exists()


def test_rootfs_below_the_package_is_no_part_of_it(folder) -> None:
    rootfs = folder / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    os.mkfifo(rootfs / "etc" / "fifo")
    digest = fingerprint(str(folder), str(rootfs))
    copy = copied(folder, rootfs)
    assert "rootfs" not in names_below(copy)
    (rootfs / "etc" / "more").write_text("")
    assert fingerprint(str(folder), str(rootfs)) == digest


def test_version_control_is_no_part_of_it(folder) -> None:
    """Every clone and fetch changes it, and it may have sockets."""
    digest = fingerprint(str(folder), None)
    (folder / ".git" / "objects").mkdir(parents=True)
    os.mkfifo(folder / ".git" / "fsmonitor--daemon.ipc")
    (folder / ".svn").write_text("x")
    assert fingerprint(str(folder), None) == digest
    (folder / ".gitignore").write_text("x")
    assert fingerprint(str(folder), None) != digest
    below = names_below(copied(folder))
    assert ".gitignore" in below and not {".git", ".svn"} & set(below)


def test_rootfs_elsewhere_that_a_link_names_is_no_part_of_it(folder) -> None:
    elsewhere = folder.parent / "debian"
    elsewhere.mkdir()
    (folder / "rootfs").symlink_to(elsewhere)
    assert "rootfs" not in names_below(copied(folder, elsewhere))


def test_names_with_newlines_and_odd_bytes_are_copied(folder) -> None:
    odd = [
        b"new\nline",
        b"caf\xe9",
        b"\xff\xfe",
        b" space ",
        b"-rf",
        "größe".encode(),
        b"\x1b[31m",
        b"a" * 255,
    ]
    for name in odd:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(name)
    copy = os.fsencode(copied(folder))
    for name in odd:
        with open(os.path.join(copy, name), "rb") as file:
            assert file.read() == name


def _device(path: Path) -> None:
    """Make the one device that needs no root: 0:0, a whiteout (Linux 5.8)."""
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [os.mkfifo, _socket, _device])
def test_what_is_no_file_folder_or_link_is_refused_by_name_and_nothing_is_left(
    folder, make
) -> None:
    make(folder / "bin" / "odd")
    with refuses(InvalidInput, "bin/odd", hint="move it out of the package"):
        fingerprint(str(folder), None)
    with refuses(InvalidInput, "bin/odd", hint="move it out of the package"):
        copy_to("api", str(folder), None, "0" * 64)
    assert left_over() == []


def test_folders_nested_too_deep_are_refused(folder) -> None:
    (folder / "/".join("d" * 66)).mkdir(parents=True)
    with pytest.raises(InvalidInput, match="nested more than 64 deep"):
        fingerprint(str(folder), None)


def test_long_path_is_cut_in_messages(folder) -> None:
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(66):
        os.mkdir("d" * 250, dir_fd=fd)
        above, fd = fd, os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(above)
    os.close(fd)
    with pytest.raises(InvalidInput, match="nested more than 64 deep") as refused:
        fingerprint(str(folder), None)
    assert len(refused.value.message) < 300


def test_holes_stay_holes(folder) -> None:
    """A sparse file of 1 GB would fill the disk with zeros."""
    with (folder / "image").open("wb") as file:
        file.truncate(1 << 30)
        for place in (0, 100 << 20, (1 << 30) - 10):
            os.pwrite(file.fileno(), b"data", place)
    with (folder / "hole").open("wb") as file:
        file.truncate(1 << 30)
    plain = folder.parent / "plain"  # as without the look at the holes
    with plain.open("wb") as written, (folder / "image").open("rb") as file:
        assert os.sendfile(written.fileno(), file.fileno(), None, 10 << 20) == 10 << 20
    assert plain.stat().st_blocks * 512 >= 10 << 20
    copy = copied(folder)
    for name in ("image", "hole"):
        status = (copy / name).stat()
        assert status.st_size == 1 << 30
        assert status.st_blocks * 512 < 1 << 20
    with (copy / "image").open("rb") as file:
        for place in (0, 100 << 20, (1 << 30) - 10):
            assert os.pread(file.fileno(), 6, place) == b"data\0\0"


@pytest.mark.parametrize(
    ("size", "free", "said"), [(3 << 20, 1 << 20, "takes 3 MB"), (300_000, 0, "takes 1 MB")]
)
def test_package_larger_than_the_free_space_is_refused_before_it_is_copied(
    folder, monkeypatch, size: int, free: int, said: str
) -> None:
    (folder / "large").write_bytes(b"x" * size)
    real = os.statvfs

    def nearly_full(path: str) -> os.statvfs_result:
        fields = list(real(path))
        fields[4] = free // fields[1]  # f_bavail
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    monkeypatch.setattr(package, "_copy_one", None)
    with pytest.raises(Error, match=rf"it {said}, and .* has {free >> 20} MB free"):
        copied(folder)
    assert left_over() == []


def test_folders_nested_64_deep_are_copied(folder) -> None:
    deep = folder / "/".join("d" * 64)
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    assert (copied(folder) / "/".join("d" * 64) / "file").read_text() == "x"


def test_folder_that_is_not_there_is_an_error_that_names_it(tmp_path) -> None:
    with pytest.raises(Error, match=r"nowhere/?: No such file"):
        fingerprint(str(tmp_path / "nowhere"), None)


def as_nobody(what) -> str:
    """What ``what`` raises where file modes count: in a child that is not root. "" where it raises nothing."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            what()
        except Error as error:
            os.write(write, error.message.encode())
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return found


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("path", "words"), [("bin", "cannot read package folder"), ("secret", "cannot copy")]
)
def test_what_cannot_be_read_is_an_error_that_names_it(folder, monkeypatch, path, words) -> None:
    top = Path(tempfile.mkdtemp())  # pytest's own folders are root's alone
    try:
        top.chmod(0o755)
        moved = Path(shutil.copytree(folder, top / "api"))
        (top / "state").mkdir()
        (top / "state").chmod(0o777)
        monkeypatch.setenv("NISO_STATE_DIR", str(top / "state"))
        (moved / "secret").chmod(0o644)
        (moved / path).chmod(0)
        found = as_nobody(lambda: copy_to("api", str(moved), None, "0" * 64))
        assert words in found
        assert f"{moved / path}: Permission denied" in found
        (moved / path).chmod(0o700)
    finally:
        shutil.rmtree(top)


def test_keep_only_deletes_older_copies_and_the_folder_with_the_last(folder) -> None:
    first = copied(folder)
    (folder / "secret").write_text("second")
    second = copied(folder)
    assert first != second
    package.keep_only("api", {str(second)})
    assert not first.exists()
    assert second.exists()
    package.keep_only("api", set())
    assert not Path(paths.package_dir("api")).exists()
    package.keep_only("api", set())


def test_older_copies_that_cannot_be_listed_stay(folder, monkeypatch) -> None:
    copy = copied(folder)

    def refuses(path: str) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuses)
        package.keep_only("api", {"another"})
    assert copy.exists()


def test_what_cannot_be_deleted_is_the_answer(folder, monkeypatch) -> None:
    def refuses(path: str, **_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuses)
        error = package.delete_tree(str(folder))
    assert error is not None
    assert error.errno in (errno.EBUSY, errno.ENOTEMPTY)
    assert package.delete_tree(str(folder)) is None
    assert package.delete_tree(str(folder)) is None
    assert not folder.exists()


RICH = r"""
[package]
name = "api"
version = "1.0.0"
[binary]
entrypoint = "/bin/sh"
args = ["-c", "echo $HOME $${HOME} \"a\" '\\' \u00e9 \u007f"]
[environment]
A = "$$${B}"
C = ""
[service]
user = "1000:1000"
restart = "always"
stop_timeout = "200ms"
env_file = ["vars"]
[isolation]
capabilities = ["NET_RAW"]
read_only = false
[isolation.resources]
memory_max = "512M"
pids_limit = 5
[healthcheck]
command = ["/bin/true"]
retries = 5
[volumes]
data = { mount = "/data" }
conf = { mount = "/etc/app", host = "./conf", mode = "ro" }
tmp = { mount = "/scratch", tmpfs = true, size = "64M" }
[secrets]
TOKEN = { file = "./token" }
[network]
networks = ["backend", "frontend"]
ip = { backend = "10.99.1.10" }
ports = ["127.0.0.1:8080:80", "53:53/udp"]
aliases = ["web"]
extra_hosts = { old = "192.0.2.1" }
bandwidth = { in = "1M" }
[network.policy]
allow_from = []
deny_from = ["10.0.0.0/8"]
mode = "audit"
audit_until = 2030-01-01T00:00:00Z
egress = { allow = ["db:5432"], deny = ["0.0.0.0/0:25"] }
"""
JOB = """
[package]
name = "job"
version = "1"
[binary]
entrypoint = "/bin/true"
[service]
kind = "job"
[network]
mode = "none"
"""


def as_copied(spec: ServiceSpec, copy: Path) -> ServiceSpec:
    """What the manifest of a copy says of a service, without where its files are."""
    copy.mkdir(exist_ok=True)
    package.keep_manifest(str(copy), spec, ())
    copied = load.load(str(copy)).spec
    return copied._replace(process=copied.program._replace(apart=spec.program.apart))


@pytest.mark.parametrize("text", [RICH, JOB])
def test_manifest_of_a_copy_says_what_is_active(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    for name in ("token", "conf"):
        (folder / name).write_text("")
    (folder / "vars").write_text("E=${X}\n")
    (folder / "manifest.toml").write_text(text)
    spec = load.load(str(folder)).spec
    copied = as_copied(spec, tmp_path / "copy")
    assert copied._replace(manifest={}) == spec._replace(manifest={})
    mode = (tmp_path / "copy" / "manifest.toml").stat().st_mode & 0o777
    assert mode == (0o600 if spec.program.apart else 0o644), (
        "a file of variables can have passwords"
    )


def test_manifest_of_a_copy_is_written_only_if_it_differs(tmp_path: Path) -> None:
    (tmp_path / "manifest.toml").write_text(JOB)
    spec = load.load(str(tmp_path)).spec
    as_copied(spec, tmp_path / "copy")
    file = tmp_path / "copy" / "manifest.toml"
    before = file.stat().st_ino
    package.keep_manifest(str(tmp_path / "copy"), spec, ())
    assert file.stat().st_ino == before
    (tmp_path / "manifest.toml").write_text(JOB.replace("none", "host"))
    assert as_copied(load.load(str(tmp_path)).spec, tmp_path / "copy").network.mode == "host"
    (tmp_path / "manifest.toml").write_text(JOB.replace("true", "false"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Error, match="cannot write"):
        patch.setattr(files, "write", lambda *_: os.open("/nowhere", 0))
        as_copied(load.load(str(tmp_path)).spec, tmp_path / "copy")
    assert load.load(str(tmp_path / "copy")).spec.network.mode == "host", "the file is as it was"
