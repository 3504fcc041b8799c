"""Test manifest files that cannot be read or parsed, and rootfs folders that are not there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import HEAD, error, loaded, write
from refusals import refuses

from niso.base.errors import Error, ErrorGroup, InvalidInput, NotFound
from niso.manifest import toml
from niso.manifest.load import load


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[package\nname = 1", "line 1, column 9"),
        ("a = 1\nb = = 2", "line 2, column 5"),
        ("a = 1\na = 2", "line 2, column 6: a has a value already"),
        (
            "[a]\n[b.c]\n[a] # x",
            "line 3, column 3: the table [a] is there twice; the first is in line 1",
        ),
        ("[a]\nb = 1\n[a.b]\nc = 1", "line 3, column 5: [a.b] has a value already"),
        ("a = {b = 1}\n[a.c]", "line 2, column 5: the table [a.c] is there twice"),
        ('a = 1\nb = "', "line 2, column 6"),
        ('a = "\x1b[31m"', "line 1, column 6"),
        (b"a = 1\nb = '\xff'", "line 2, column 6: not UTF-8"),
    ],
)
def test_syntax_error_comes_alone_with_line_and_column(
    tmp_path: Path, text: str | bytes, place: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidInput) as caught:
        load(path)
    assert caught.value.message.startswith(f"{path}: {place}")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 20_000, "nested too deep"),
        ("a = " + "9" * 5000, "too many digits"),
        (b"#" * (toml.MAX_BYTES + 1), "larger than"),
    ],
)
def test_file_that_no_manifest_can_be_is_refused(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        load(write(tmp_path, text))


def test_missing_file_and_folder_without_manifest_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (
        tmp_path,
        tmp_path / "none",
        tmp_path / "none" / "manifest.toml",
        tmp_path / "file" / "x",
    ):
        with refuses(NotFound, hint="pass the path of a manifest.toml or of its folder"):
            load(str(path))


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test that waits for ever."""

    def ring(number: int, frame: object) -> None:
        raise AssertionError("still waiting")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_manifest_that_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder" / "manifest.toml").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for name, words in (
        ("folder", "cannot be read: is a directory"),
        ("fifo.toml", "not a regular"),
        ("loop.toml", "be read"),
    ):
        with pytest.raises(Error, match=words):
            load(str(tmp_path / name))


@pytest.mark.parametrize("path", ["a\x00b", "\ud800.toml", "\x1b[31m.toml"])
def test_strange_path_is_an_error_that_is_safe_to_print(path: str) -> None:
    with pytest.raises(Error) as caught:
        load(path)
    assert caught.value.message.isprintable()


def test_file_of_a_strange_name_is_escaped_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m.toml"
    path.write_text("[package]", encoding="utf-8")
    with pytest.raises(ErrorGroup) as caught:
        load(str(path))
    assert caught.value.message.isprintable()
    assert "\\u001b[31m.toml: missing key package.name (a string)" in caught.value.message


def test_rootfs_must_be_a_folder_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "build" / "rootfs").mkdir(parents=True)
    (package / "file").touch()
    (package / "inside").symlink_to("build/rootfs")
    (package / "outside").symlink_to("..")
    (package / "absolute").symlink_to("/usr")
    (package / "self").symlink_to(".")
    (tmp_path / "package-2").mkdir()
    (package / "sibling").symlink_to("../package-2")

    def with_rootfs(name: str) -> str:
        return HEAD.replace("[binary]", f'rootfs = "{name}"\n[binary]')

    for name in ("build/rootfs", "inside", "build/rootfs/"):
        assert loaded(package, with_rootfs(name)).program.rootfs == name
    assert loaded(package, with_rootfs("none")).program.rootfs == "none"  # built later
    for name in (
        "file",
        "outside",
        "absolute",
        "self",
        ".",
        "sibling",
        "..",
        "/usr",
        "build/../..",
        "",
    ):
        assert error(package, with_rootfs(name)).key == "package.rootfs"


def test_package_folder_that_is_a_link_has_its_rootfs(tmp_path: Path) -> None:
    (tmp_path / "real" / "rootfs").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "real", HEAD.replace("[binary]", 'rootfs = "rootfs"\n[binary]'))
    assert load(str(tmp_path / "link")).folder == str(tmp_path / "link")
