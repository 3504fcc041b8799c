"""Test that sysctls are read from folders held open, but not from deleted ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from niso.base.errors import KernelError
from niso.kernel import proc_sys


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(proc_sys, "_own_sys", lambda: os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    folder = tmp_path / "net/ipv4"
    folder.mkdir(parents=True)
    (folder / "ip_forward").write_text("0\n")
    return folder


def test_folder_of_a_namespace_that_is_gone_is_opened_anew(net: Path) -> None:
    assert proc_sys.read("net/ipv4/ip_forward") == "0"
    shutil.rmtree(net)
    net.mkdir()
    (net / "ip_forward").write_text("1\n")
    assert proc_sys.read("net/ipv4/ip_forward") == "1"


def test_what_is_not_there_is_none_and_cannot_be_set(net: Path) -> None:
    assert proc_sys.read("net/ipv4/nonesuch") is None
    assert proc_sys.read("net/ipv6/conf/all/forwarding") is None
    with pytest.raises(KernelError, match="nonesuch"):
        proc_sys.write("net/ipv4/nonesuch", "1")


@pytest.mark.parametrize(
    "name", ["kernel/hostname", "net/../kernel/hostname", "net/ipv4", "/net/ipv4/ip_forward"]
)
def test_only_what_lies_below_net_is_touched(net: Path, name: str) -> None:
    with pytest.raises(KernelError, match="not a sysctl of a network namespace"):
        proc_sys.read(name)
    with pytest.raises(KernelError, match="not a sysctl of a network namespace"):
        proc_sys.write(name, "x")


def test_folder_that_cannot_be_opened_anew_is_not_closed_twice(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proc_sys.read("net/ipv4/ip_forward") == "0"
    monkeypatch.setattr(proc_sys, "_folders", {})
    monkeypatch.setattr(proc_sys, "_MOST_WALKS", 1)
    monkeypatch.setattr(proc_sys, "_own_sys", lambda: os.open("/nonesuch", os.O_PATH))
    for _ in range(2):
        assert proc_sys.read("net/ipv4/ip_forward") is None  # ENOENT
        assert proc_sys._top == -1
