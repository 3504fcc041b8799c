"""Test where a store may be: its folder may move, and a copy of it does not act for the original."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from refusals import refuses

from niso.base.errors import Error
from niso.store.store import Store


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "original"
    opened(folder, monkeypatch).close()
    return folder


def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("NISO_STATE_DIR", str(folder))
    return Store.open()


def test_copy_is_refused_while_the_original_exists(original: Path, monkeypatch) -> None:
    copy = Path(shutil.copytree(original, original.with_name("copy")))
    for _ in range(2):
        with refuses(Error, str(copy), str(original)):
            opened(copy, monkeypatch)
        opened(original, monkeypatch).close()
    moved = original.rename(original.with_name("away"))
    opened(copy, monkeypatch).close()
    shutil.rmtree(moved)


def test_folder_may_move_and_come_back_from_a_copy(original: Path, monkeypatch) -> None:
    moved = original.rename(original.with_name("moved"))
    opened(moved, monkeypatch).close()
    backup = Path(shutil.copytree(moved, moved.with_name("backup")))
    with refuses(Error, str(moved)):
        opened(backup, monkeypatch)
    shutil.rmtree(moved)
    opened(Path(shutil.copytree(backup, moved)), monkeypatch).close()


def test_new_store_in_the_old_place_is_another_one(original: Path, monkeypatch) -> None:
    elsewhere = Path(shutil.copytree(original, original.with_name("elsewhere")))
    shutil.rmtree(original)
    opened(original, monkeypatch).close()
    opened(elsewhere, monkeypatch).close()


def test_folder_with_another_path_is_the_same(original: Path, monkeypatch) -> None:
    link = original.with_name("link")
    link.symlink_to(original)
    for folder in (link, original, link):
        opened(folder, monkeypatch).close()


def test_path_that_is_no_text_is_kept(tmp_path: Path, monkeypatch) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \\n'\""))
    opened(folder, monkeypatch).close()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with pytest.raises(Error, match="is a copy of the state folder"):
        opened(copy, monkeypatch)
