"""Test when `niso activate NAME` says that ./NAME has another manifest."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from niso.change.targets import is_beside_another


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """A service that was activated from ./api."""
    (tmp_path / "api/static").mkdir(parents=True)
    for name in ("manifest.toml", ".env", "static/index.html"):
        (tmp_path / "api" / name).write_text("")
    shutil.copytree(tmp_path / "api", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    manifest = str(tmp_path / "api/manifest.toml")
    time.sleep(0.02)  # the clock of files is that coarse
    return "api", manifest, str(tmp_path / "copy")


def test_folder_as_it_was_copied_is_the_services_own(known: tuple[str, str, str]) -> None:
    assert not is_beside_another(*known)
    shutil.rmtree("api")
    assert not is_beside_another(*known)


@pytest.mark.parametrize("name", ["manifest.toml", ".env", "static/index.html", "static/new"])
def test_changed_file_is_noticed_whatever_its_time(known: tuple[str, str, str], name: str) -> None:
    path = Path("api", name)
    path.write_text("changed")
    os.utime(path, (0, 0))
    assert is_beside_another(*known)


def test_deleted_file_is_noticed(known: tuple[str, str, str]) -> None:
    Path("api/static/index.html").unlink()
    assert is_beside_another(*known)


def test_folder_of_that_name_elsewhere_is_another(
    known: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("api", "elsewhere/api")
    time.sleep(0.02)
    os.chmod(known[2], 0o700)  # the copy is newer
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert is_beside_another(*known)
