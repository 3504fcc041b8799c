"""Test packages that change while they are copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from packages import copy_to, fingerprint, left_over, small_package
from refusals import refuses

from niso.base import paths
from niso.base.errors import Error, InvalidInput
from niso.runtime import package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_package(tmp_path)


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
    with refuses(InvalidInput, hint="activate it again when it is complete"):
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
    with refuses(InvalidInput, hint="move it out of the package"):
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
    with refuses(InvalidInput, hint="activate it again when it is complete"):
        copy_to("api", str(folder), None, digest)
