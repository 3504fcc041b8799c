"""Folders of a hostile shape are removed whole, and nothing else is."""

from __future__ import annotations

import os
import pathlib
import resource
import shutil

import pytest

from niso.base import files


@pytest.fixture
def few_descriptors() -> object:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def nest(top: pathlib.Path, depth: int, name: str) -> None:
    """Nest folders, each with a file; the paths become longer than PATH_MAX."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_depth_costs_neither_descriptors_nor_recursion(
    tmp_path: pathlib.Path, few_descriptors: None
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    nest(top, 1200, "n" * 200)
    with pytest.raises((OSError, RecursionError)):
        shutil.rmtree(top)
    files.remove_tree(str(top))
    assert not top.exists()


def test_names_like_those_of_the_removal_are_not_lost_or_in_its_way(tmp_path: pathlib.Path) -> None:
    top = tmp_path / "top"
    for number in range(5):
        (top / f".{number}" / ".1" / f".{number}").mkdir(parents=True)
        (top / f"a{number}" / ".2").mkdir(parents=True)
    (top / ".5").write_text("a file")
    (top / ".6").symlink_to(".")
    files.remove_tree(str(top))
    assert not top.exists()


def test_links_are_not_followed_and_special_files_not_opened(tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (outside / "file").write_text("kept")
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "link").symlink_to(outside)
    (top / "a" / "link").symlink_to(outside / "below")
    (top / "a" / "loop").symlink_to("loop")
    os.mkfifo(top / "fifo")
    files.remove_tree(str(top))
    assert not top.exists()
    assert sorted(path.name for path in outside.iterdir()) == ["below", "file"]


def test_missing_folder_is_nothing_and_a_link_is_refused(tmp_path: pathlib.Path) -> None:
    files.remove_tree(str(tmp_path / "gone"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(OSError):
        files.remove_tree(str(tmp_path / "link"))
    assert (tmp_path / "folder").is_dir()
