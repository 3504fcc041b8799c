"""Test the fingerprint of a package's content: what changes it, and that unchanged files are not read again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from packages import fingerprint, small_package

from niso.base import paths
from niso.runtime import package
from niso.runtime.package import Contents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_package(tmp_path)


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
    read = package._read
    monkeypatch.setattr(package, "_read", lambda fd, size: found.append(size) or read(fd, size))
    return found


def test_file_is_read_once_until_it_changes(folder, reads, monkeypatch) -> None:
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)

    def taken() -> tuple[str, list[int]]:
        known = Contents("api")
        reads.clear()
        digest = package.fingerprint(str(folder), None, known, None)
        assert package.fingerprint(str(folder), None, known, None) == digest
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
        package.fingerprint(str(folder), None, known, None)
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


def test_names_cannot_be_shifted_into_one_another(folder) -> None:
    """Two packages whose names and links would give one text without their separators."""
    found = set()
    for name, target in (("a", "bc"), ("ab", "c"), ("a\nb", "c")):
        (folder / name).symlink_to(target)
        found.add(fingerprint(str(folder), None))
        (folder / name).unlink()
    assert len(found) == 3
