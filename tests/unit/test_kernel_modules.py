"""Test the loading of br_netfilter, its global sysctls, and errors that name missing modules."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusals import refuses

from niso.base import paths
from niso.base.errors import KernelError
from niso.kernel import link_records, netlink, proc_sys, real
from niso.kernel.foreign_chains import ForeignChains
from niso.kernel.kinds import kind, links
from niso.kernel.netns import Sockets

NAMES = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Provide a private /proc/sys, and a modprobe that runs ``script``."""
    program = tmp_path / "modprobe"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n{script}\n')
    program.chmod(0o755)
    folder = tmp_path / "sys"
    monkeypatch.setattr(proc_sys, "_MODPROBE", (str(tmp_path / "none"), str(program)))
    monkeypatch.setattr(proc_sys, "_SYS", str(folder))
    monkeypatch.setattr(proc_sys, "_own_sys", lambda: os.open(folder, os.O_PATH | os.O_DIRECTORY))
    return folder / "net/bridge"


def test_missing_module_is_loaded_and_other_bridges_keep_their_frames(
    tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "sys/net/bridge"
    make = f"/bin/mkdir -p {folder}\n" + "\n".join(f"echo 1 > {folder}/{name}" for name in NAMES)
    assert machine(tmp_path, monkeypatch, make) == folder
    proc_sys.load_bridge_netfilter()
    assert (tmp_path / "called").read_text() == "-q br_netfilter\n"
    assert [(folder / name).read_text() for name in NAMES] == ["0"] * 3


def test_module_that_is_there_is_left_as_it_is(tmp_path, monkeypatch) -> None:
    folder = machine(tmp_path, monkeypatch, "")
    folder.mkdir(parents=True)
    (folder / NAMES[0]).write_text("1")
    proc_sys.load_bridge_netfilter()
    assert not (tmp_path / "called").exists()
    assert (folder / NAMES[0]).read_text() == "1"


def test_module_that_cannot_be_loaded_is_an_error_that_says_what_will_not_work(
    tmp_path, monkeypatch
) -> None:
    machine(tmp_path, monkeypatch, "exit 1")
    with refuses(
        KernelError,
        "br_netfilter",
        hint="install the full set of kernel modules, or publish no ports",
    ):
        proc_sys.load_bridge_netfilter()


def test_change_that_a_missing_module_prevents_names_the_module(tmp_path, monkeypatch) -> None:
    machine(tmp_path, monkeypatch, '[ "$2" != nft_masq ]')
    library = tmp_path / "modules"
    monkeypatch.setattr(proc_sys, "_LIBRARY", str(library))
    monkeypatch.setattr(proc_sys, "_MODULAR", str(tmp_path))
    monkeypatch.setattr(proc_sys, "_ON_DEMAND", ("nft_no_such", "nft_masq"))
    assert proc_sys.missing_modules() is None  # nothing on this machine is a module
    library.mkdir()
    assert "reboot" in str(proc_sys.missing_modules())  # the kernel's package was upgraded
    (library / os.uname().release).mkdir()
    assert "nft_masq:" in str(proc_sys.missing_modules())
    assert (tmp_path / "called").read_text() == "-q nft_no_such\n-q nft_masq\n"

    def refuse(*_: object) -> None:
        raise KernelError("nft: could not process rule: no such file or directory")

    step = SimpleNamespace(kind=SimpleNamespace(write=refuse), describe=lambda: "add rules")
    writer = real.Writer([], Sockets(), None)
    with pytest.raises(KernelError) as error:
        writer._do([step])  # type: ignore[list-item]
    assert "nft_masq:" in str(error.value.hint)
    monkeypatch.setattr(proc_sys, "_ON_DEMAND", ("nft_no_such",))
    assert proc_sys.missing_modules() is None


def test_bridge_whose_module_was_removed_is_read_as_untracked(tmp_path, monkeypatch) -> None:
    """So `net check` reports it, and `net repair` loads the module: without it, policies are open."""
    bridge = ("niso-x", "bridge", 1500, "0a:00:00:00:00:01", True, 0, "", 0, False, True, True)
    space = SimpleNamespace(
        own_link=lambda name: link_records.Link(1, *bridge),
        reading=SimpleNamespace(everything=False, with_strays=False),
    )

    def tracked() -> tuple[bool, bool]:
        asked = links.Bridge("niso-x", 1500, "")
        [found] = kind.kind_of(asked).read(space, [asked])
        return found.tracked4, found.tracked6

    folder = machine(tmp_path, monkeypatch, "")
    assert tracked() == (False, False)
    folder.mkdir(parents=True)
    assert tracked() == (True, True)


def test_lab_without_root_goes_on_without_the_module(tmp_path, monkeypatch) -> None:
    """`niso lab` has warned. Outside of a lab, the module is still needed."""
    machine(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setattr(paths, "in_user_namespace", lambda: True)
    with pytest.raises(KernelError):
        proc_sys.load_bridge_netfilter()
    (tmp_path / "called").unlink()
    monkeypatch.setattr(paths, "in_lab", lambda: True)
    proc_sys.load_bridge_netfilter()
    assert not (tmp_path / "called").exists()


def test_kernel_without_the_queue_for_bandwidth_says_so() -> None:
    class Refusing:
        def transact(self, *messages: object) -> None:
            raise KernelError("limit the rate: no such file", errno=errno.ENOENT)

    with refuses(
        KernelError,
        hint="load the module sch_tbf (CONFIG_NET_SCH_TBF), or leave out network.bandwidth",
    ) as error:
        link_records.set_rate(Refusing(), 7, 8000)  # type: ignore[arg-type]
    assert "sch_tbf" in str(error.value.hint)


def test_kernel_without_nf_tables_is_named(monkeypatch) -> None:
    def refuse(self: object, what: str, *_: object) -> None:
        raise netlink.refused(what, errno.EINVAL)

    monkeypatch.setattr(ForeignChains, "dump", refuse)
    with pytest.raises(KernelError) as error:
        ForeignChains.base_chains(ForeignChains.__new__(ForeignChains))
    assert "modprobe nf_tables" in str(error.value.hint)
    assert "tcp_diag" in str(netlink.refused("list tcp sockets", errno.ENOENT).hint)
