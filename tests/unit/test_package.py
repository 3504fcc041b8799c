"""Test package copies: content, permissions, refused files."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from niso.base import paths
from niso.base.errors import Error, InvalidInput
from niso.runtime import contents, mount_calls, package
from niso.runtime.contents import Contents


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "api"
    (made / "bin").mkdir(parents=True)
    (made / "manifest.toml").write_text("[package]\n")
    (made / "bin" / "api").write_text("#!/bin/sh\n")
    (made / "bin" / "api").chmod(0o750)
    (made / "secret").write_text("x")
    (made / "secret").chmod(0o600)
    return made


def fingerprint(folder: str, rootfs: str | None, manifest: str | None = None) -> str:
    return package.fingerprint(folder, rootfs, Contents("api"), manifest)


def copy_to(
    service: str, folder: str, rootfs: str | None, digest: str, manifest: str | None = None
) -> str:
    return package.copy(service, folder, rootfs, digest, Contents(service), manifest)


def copied(folder: Path, rootfs: Path | None = None) -> Path:
    root = str(rootfs) if rootfs else None
    return Path(copy_to("api", str(folder), root, fingerprint(str(folder), root)))


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def left_over() -> list[str]:
    """What lies where copies are kept."""
    top = Path(paths.package_dir("api"))
    return names_below(top) if top.exists() else []


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
    monkeypatch.setattr(mount_calls, "syncfs", lambda fd: done.append("all of it"))
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


# --- the fingerprint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: (folder / "secret").write_text("longer"),
        lambda folder: (folder / "secret").write_text("y"),
        lambda folder: (folder / "secret").chmod(0o700),
        lambda folder: (folder / "secret").rename(folder / "other"),
        lambda folder: (folder / "new").write_text(""),
        lambda folder: (folder / "bin" / "api").unlink(),
        lambda folder: (folder / "empty").mkdir(),
        lambda folder: (folder / "link").symlink_to("bin"),
    ],
)
def test_fingerprint_changes_with(folder, edit) -> None:
    before = fingerprint(str(folder), None)
    edit(folder)
    assert fingerprint(str(folder), None) != before


def test_fingerprint_is_the_same_for_the_same_content_written_again(folder) -> None:
    with (folder / "sparse").open("wb") as file:
        file.seek(10 << 20)
        file.write(b"x" + bytes(1 << 20))
    before = fingerprint(str(folder), None)
    for path in (folder / "secret", folder / "bin" / "api", folder / "sparse"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    (folder / "secret").chmod(0o644)
    (folder / "bin" / "api").chmod(0o755)
    (folder / "bin").chmod(0o700)
    os.utime(folder / "secret", ns=(1, 1))
    assert fingerprint(str(folder), None) == before
    (folder / "sparse").write_bytes(bytes(10 << 20) + b"y" + bytes(1 << 20))
    assert fingerprint(str(folder), None) != before


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """The sizes of the files that are read for their digests."""
    found: list[int] = []
    read = contents._read
    monkeypatch.setattr(contents, "_read", lambda fd, size: found.append(size) or read(fd, size))
    return found


def test_file_is_read_once_until_it_changes(folder, reads, monkeypatch) -> None:
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)

    def taken() -> tuple[str, list[int]]:
        known = Contents("api")
        reads.clear()
        digest = package.fingerprint(str(folder), None, known)
        assert package.fingerprint(str(folder), None, known) == digest
        known.save()
        return digest, list(reads)

    (folder / "big").write_bytes(b"x" * (9 << 20))
    first, sizes = taken()
    assert sorted(sizes) == [1, 10, 10, 9 << 20]
    assert taken() == (first, [])
    content = (folder / "secret").read_text()
    (folder / "secret").write_text(content)
    os.utime(folder / "secret", ns=(7, 7))
    assert taken() == (first, [1]), "written again"
    same = (folder / "secret").stat()
    (folder / "secret").write_text("y")
    os.utime(folder / "secret", ns=(same.st_atime_ns, same.st_mtime_ns))
    changed, sizes = taken()
    assert changed != first and sizes == [1], "of the same size and time"
    Path(paths.contents_file("api")).write_bytes(b"\0\xff" * 100)
    assert taken()[0] == changed
    package.keep_only("api", set())
    assert not os.path.exists(paths.contents_file("api"))


def test_file_that_has_just_changed_is_read_again(folder, reads) -> None:
    for _ in range(2):
        known = Contents("api")
        package.fingerprint(str(folder), None, known)
        known.save()
    assert len(reads) == 2 * 3


def test_fingerprint_does_not_change_by_reading_or_by_place(folder) -> None:
    before = fingerprint(str(folder), None)
    (folder / "secret").read_text()
    moved = folder.rename(folder.parent / "elsewhere")
    assert fingerprint(str(moved), None) == before


def test_fingerprint_tells_links_apart_by_their_targets(folder) -> None:
    (folder / "link").symlink_to("bin")
    before = fingerprint(str(folder), None)
    (folder / "link").unlink()
    (folder / "link").symlink_to("sec")
    assert fingerprint(str(folder), None) != before


def test_manifest_is_no_part_of_the_fingerprint_where_it_is_named(folder) -> None:
    manifest = str(folder / "manifest.toml")
    before = fingerprint(str(folder), None, manifest)
    (folder / "manifest.toml").write_text("[package]\n# more\n")
    assert fingerprint(str(folder), None, manifest) == before
    (folder / "secret").write_text("changed")
    assert fingerprint(str(folder), None, manifest) != before


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


def test_names_cannot_be_shifted_into_one_another(folder) -> None:
    """Two packages whose names and links would give one text without their separators."""
    found = set()
    for name, target in (("a", "bc"), ("ab", "c"), ("a\nb", "c")):
        (folder / name).symlink_to(target)
        found.add(fingerprint(str(folder), None))
        (folder / name).unlink()
    assert len(found) == 3


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
    with pytest.raises(InvalidInput, match=r"bin/odd.*only files, folders and symlinks"):
        fingerprint(str(folder), None)
    with pytest.raises(InvalidInput, match="bin/odd"):
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


def test_package_larger_than_the_free_space_is_refused_before_it_is_copied(
    folder, monkeypatch
) -> None:
    (folder / "large").write_bytes(b"x" * (3 << 20))
    real = os.statvfs

    def nearly_full(path: str) -> os.statvfs_result:
        fields = list(real(path))
        fields[4] = (1 << 20) // fields[1]  # f_bavail
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    monkeypatch.setattr(package, "_copy_one", None)
    with pytest.raises(Error, match=r"it takes 3 MB, and .* has 1 MB free"):
        copied(folder)
    assert left_over() == []


def test_folders_nested_64_deep_are_copied(folder) -> None:
    deep = folder / "/".join("d" * 64)
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    assert (copied(folder) / "/".join("d" * 64) / "file").read_text() == "x"


def meanwhile(monkeypatch, after: str, change) -> None:
    """Have ``change`` happen once the entry ``after`` of a package has been copied."""
    one = package._copy_one

    def and_then(each, source, target) -> None:
        one(each, source, target)
        if each.path == after:
            change()

    monkeypatch.setattr(package, "_copy_one", and_then)


def test_package_that_changes_while_it_is_copied_is_refused_and_nothing_is_left(
    folder, monkeypatch
) -> None:
    digest = fingerprint(str(folder), None)
    meanwhile(monkeypatch, "secret", lambda: (folder / "bin" / "api").write_text("#!/bin/other\n"))
    with pytest.raises(InvalidInput, match="changed while it was copied"):
        copy_to("api", str(folder), None, digest)
    assert left_over() == []


def test_file_that_vanishes_while_it_is_copied_is_an_error_that_names_it(
    folder, monkeypatch
) -> None:
    digest = fingerprint(str(folder), None)
    meanwhile(monkeypatch, "bin", (folder / "secret").unlink)
    with pytest.raises(Error, match=r"secret: No such file"):
        copy_to("api", str(folder), None, digest)
    assert left_over() == []


def test_remains_of_an_interrupted_copy_do_not_hinder_a_process_of_the_same_pid(folder) -> None:
    digest = fingerprint(str(folder), None)
    remains = Path(paths.package_dir("api")) / f"{digest}.{os.getpid()}.new"
    remains.mkdir(parents=True)
    (remains / "bin").mkdir()
    copy = Path(copy_to("api", str(folder), None, digest))
    assert (copy / "bin" / "api").exists() and not remains.exists()


def swapped(path: Path, for_what: Path) -> None:
    """Put a symlink in a name's place."""
    path.rename(path.with_name("aside"))
    path.symlink_to(for_what)


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("bin", "bin"),
        ("bin", "secret"),
        ("deep/below", "deep"),
        ("deep", "secret"),
        ("secret", "bin"),
    ],
)
def test_name_that_becomes_a_symlink_while_it_is_copied_is_not_followed(
    folder, monkeypatch, name, after
) -> None:
    outside = folder.parent / "outside"
    shutil.copytree(folder, outside)
    (folder / "deep" / "below").mkdir(parents=True)
    (folder / "deep" / "below" / "api").write_text("mine")
    for each in ("api", "below/api", "bin/api", "secret"):
        (outside / each).parent.mkdir(exist_ok=True)
        (outside / each).write_text("treasure")
    seen = []
    target = outside / "secret" if name == "secret" else outside
    meanwhile(monkeypatch, after, lambda: swapped(folder / name, target))
    # what has been copied when it is noticed
    monkeypatch.setattr(package, "_delete_copy", lambda path: seen.extend(Path(path).rglob("*")))
    with pytest.raises(Error):
        copy_to("api", str(folder), None, fingerprint(str(folder), None))
    assert seen and all(
        "treasure" not in each.read_text()
        for each in seen
        if each.is_file() and not each.is_symlink()
    )


def test_file_that_becomes_something_else_after_it_was_looked_at_is_copied_as_it_was(
    folder, monkeypatch
) -> None:
    """Not even a fifo in its place is waited for: the file is held, not its name."""
    one = package._copy_one
    seen = []

    def late(each, source, target) -> None:
        if each.path == "secret":
            (folder / "secret").unlink()
            os.mkfifo(folder / "secret")
        one(each, source, target)
        if each.path == "secret":
            seen.append(Path(target).read_text())

    digest = fingerprint(str(folder), None)
    monkeypatch.setattr(package, "_copy_one", late)
    with pytest.raises(InvalidInput, match="only files, folders and symlinks"):
        copy_to("api", str(folder), None, digest)
    assert seen == ["x"] and left_over() == []


def test_file_that_grows_without_end_is_not_followed(folder, monkeypatch) -> None:
    send = os.sendfile
    sent = []

    def grow(writer, reader, offset, count) -> int:
        with open(folder / "secret", "a") as file:
            file.write("x" * 100)
        sent.append(send(writer, reader, offset, count))
        assert len(sent) < 100
        return sent[-1]

    digest = fingerprint(str(folder), None)
    monkeypatch.setattr(os, "sendfile", grow)
    with pytest.raises(InvalidInput, match="changed while it was copied"):
        copy_to("api", str(folder), None, digest)


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
