"""Shared parts of niso's systemd units and drop-ins."""

from __future__ import annotations

import os
import sys

from niso.base import paths
from niso.base.lite_typing import Literal, NamedTuple
from niso.runtime.units import UNITS


class ChangingUnit(NamedTuple):
    """Reported when a systemd unit file is written or removed."""

    action: Literal["write", "remove"]
    path: str

    def describe(self) -> str:
        return f"{self.action} {self.path}"


AFTER = (
    "nftables.service",
    "netfilter-persistent.service",
    "firewalld.service",
    "ufw.service",
    "docker.service",
    "libvirtd.service",
    "virtnetworkd.service",
)
"""Units that start before niso's at boot.

The first ones load their own rules and may flush all others. The last ones switch forwarding on;
started before niso, they share it with niso.
"""


def drop_in(unit: str) -> str:
    """Return the path of niso's drop-in for a unit (systemd.unit(5))."""
    return os.path.join(UNITS, f"{unit}.d", "niso.conf")


def command(*words: str) -> str:
    """Return the command line of this niso with arguments, for a unit file.

    After any prefix of the caller it begins with ``:``, so that ``$`` has no meaning
    (systemd.service(5)).
    """
    return ":" + " ".join(quoted(word) for word in (sys.executable, "-I", "-m", "niso.cli", *words))


def agent(
    mark: str, description: str, words: tuple[str, ...], more: tuple[str, ...] = ("RestartSec=1",)
) -> list[str]:
    """Return the lines of a unit for a command that runs permanently (systemd.service(5)).

    The command reports when it is ready, and systemd restarts it whenever it ends. ``mark`` is the
    first line, and ``more`` are lines of ``[Service]``.
    """
    return [
        mark,
        "[Unit]",
        f"Description={description}",
        "Wants=network-online.target",
        "After=network-online.target",
        f"RequiresMountsFor={quoted(paths.state_dir())}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "Restart=always",
        *more,
        *environment(),
        f"ExecStart={command(*words)}",
        "",
    ]


def environment() -> list[str]:
    """Return ``Environment=`` lines for folders and an address pool that are not the default."""
    folders = {"NISO_STATE_DIR": paths.state_dir(), "NISO_RUN_DIR": paths.run_dir()}
    usual = {"NISO_STATE_DIR": paths.STATE_DIR, "NISO_RUN_DIR": paths.RUN_DIR}
    variables = {name: value for name, value in folders.items() if value != usual[name]}
    if os.environ.get("NISO_POOL"):
        variables["NISO_POOL"] = os.environ["NISO_POOL"]
    return [f"Environment={quoted(f'{name}={value}')}" for name, value in variables.items()]


def quoted(word: str) -> str:
    """Quote a word for a unit file (systemd.syntax(7); systemd.unit(5), Specifiers).

    A ``$`` stays: commands have the prefix ``:``, and elsewhere it has no meaning.
    """
    if word and all(c.isascii() and (c.isalnum() or c in "/._-+=,@") for c in word):
        return word
    text = "".join(
        f"\\x{byte:02x}"
        if byte < 0x20 or byte >= 0x7F
        else f"\\{chr(byte)}"
        if chr(byte) in '"\\'
        else chr(byte)
        for byte in os.fsencode(word)
    )
    return f'"{text.replace("%", "%%")}"'
