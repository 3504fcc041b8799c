"""Put an ordinary systemd unit on a network of niso (``niso net attach --new --unit``).

A unit ``niso-net@NAME.service`` attaches a namespace that niso creates, and a drop-in makes the
ordinary unit run in this namespace. The namespace outlives the unit's process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from niso.base import names, paths
from niso.base.errors import Conflict, Error, InvalidInput, NotFound
from niso.change import attach as change_attach
from niso.change.attach import Attachment, Request, current
from niso.runtime import units as systemd
from niso.runtime.machine import Machine
from niso.runtime.units import command, drop_in

OWNER = "systemd"
"""The owner of attachments for systemd units. Their id is the name of the ordinary unit."""
_MARK = "# written by niso net attach, removed by niso net detach; state folder "
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.service", re.ASCII)  # systemd.unit(5)
_LONGEST = 255  # UNIT_NAME_MAX, systemd's src/basic/unit-name.h
_OF = re.compile(r"^\[X-niso\]\nUnit=(.+)$", re.MULTILINE)
_TIMEOUT_S = 90


def unit_name(text: str) -> str:
    """Return the full name of a service unit: ``web.service`` for ``web``. Raises InvalidInput."""
    name = text if text.endswith(".service") else f"{text}.service"
    if not _UNIT.fullmatch(name) or len(name) > _LONGEST or name.endswith("@.service"):
        reason = f"{text!r} is not the name of a service unit"
        raise InvalidInput(reason, "a name like web.service", "--unit")
    if name.startswith("niso-"):
        reason = f"{name} is a unit of niso"
        raise InvalidInput(reason, "the networks of a service are in its manifest", "--unit")
    return name


def network_unit(attachment: str) -> str:
    """Return the name of the systemd unit that attaches the namespace of an attachment."""
    return f"niso-net@{attachment}.service"


def _file(attachment: str) -> str:
    return os.path.join(systemd.UNITS, network_unit(attachment))


def _network_text(attachment: str, unit: str, words: Sequence[str], state_id: str) -> str:
    """Return the text of a unit that attaches a namespace by the command niso ``words``."""
    lines = [
        _MARK + state_id,
        "[Unit]",
        f"Description=niso network {attachment} of {systemd.quoted(unit)}",
        f"After={' '.join(systemd.AFTER)}",
        f"RequiresMountsFor={systemd.quoted(paths.state_dir())}",
        "",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        *systemd.environment(),
        f"ExecStart={command(*words)}",
        f"ExecStop={command('net', 'detach', attachment, '--id', unit)}",
        f"TimeoutStartSec={_TIMEOUT_S}",
        f"TimeoutStopSec={_TIMEOUT_S}",
        "",
        "[X-niso]",
        f"Unit={unit}",
        "",
    ]
    return "\n".join(lines)


def _drop_in_text(attachment: str, state_id: str) -> str:
    lines = [
        _MARK + state_id,
        "[Unit]",
        f"BindsTo={network_unit(attachment)}",
        f"After={network_unit(attachment)}",
        "",
        "[Service]",
        f"NetworkNamespacePath={os.path.join(paths.NETNS_DIR, names.netns(attachment))}",
        "",
    ]
    return "\n".join(lines)


def attach(machine: Machine, request: Request, unit: str, words: Sequence[str]) -> Attachment:
    """Attach a new namespace, in which the systemd unit ``unit`` runs from its next start on.

    ``words`` are the arguments of niso for the same attachment without a unit. Raises Error without
    systemd, NotFound for an unknown unit, and the errors of `attach.attach`.
    """
    store, units, name = machine.store, machine.processes.units, request.name
    if not units.booted():
        raise Error("systemd did not boot this machine, so it has no units", None, "--unit")
    if not units.is_known(unit):
        raise NotFound(f"systemd has no unit {unit!r}", "systemctl list-unit-files", "--unit")
    wanted = {
        _file(name): _network_text(name, unit, words, store.state_id()),
        drop_in(unit): _drop_in_text(name, store.state_id()),
    }
    texts = {path: units.read(path) for path in wanted}
    systemd.refuse_foreign(units, wanted, _MARK + store.state_id())
    _refuse_other(name, unit, texts[_file(name)], texts[drop_in(unit)])
    before = current(store, name)
    done = change_attach.attach(machine, request)
    try:
        # the drop-in last: systemd stops a unit that is bound to an inactive unit
        for path, text in wanted.items():
            systemd.put(units, {path: text}, machine.report)
            if not path.endswith(".conf"):
                units.start_unit(os.path.basename(path))
    except BaseException:
        _undo(machine, name, before, texts)
        raise
    if wanted[drop_in(unit)] != texts[drop_in(unit)] and units.is_active(unit):
        machine.caution(f"{unit} is in this network only from its next start on")
    return done._replace(changed=done.changed or wanted != texts)


def _binds(dropped: str, attachment: str) -> bool:
    return f"\nBindsTo={network_unit(attachment)}\n" in dropped


def _refuse_other(name: str, unit: str, network: str | None, dropped: str | None) -> None:
    of = _OF.search(network or "")
    if of is not None and of[1] != unit:
        raise Conflict(f"{name!r} is the network of {of[1]}", "choose another name", "NAME")
    if dropped is not None and not _binds(dropped, name):
        reason = f"{unit} has a network already, by {drop_in(unit)}"
        raise Conflict(reason, "attach it by the name there")


def _undo(
    machine: Machine, name: str, before: Request | None, texts: dict[str, str | None]
) -> None:
    units = machine.processes.units
    try:
        for path, text in reversed(texts.items()):
            if text is None:
                units.delete(path)
            else:
                units.write(path, text)
        units.reload()
    finally:
        if before is None:
            change_attach.detach(machine, name)
        else:
            change_attach.attach(machine, before)


def unit_of(machine: Machine, attachment: str) -> str | None:
    """Return the name of the ordinary unit that runs in an attachment's namespace, or None."""
    units = machine.processes.units
    mark = _MARK + machine.store.state_id()
    if not (units.booted() and systemd.ours(units, [_file(attachment)], mark)):
        return None
    of = _OF.search(units.read(_file(attachment)) or "")
    return of[1] if of is not None else None


def detach(machine: Machine, name: str, unit: str) -> None:
    """Take the systemd unit ``unit`` off its network.

    Deletes the unit niso-net@NAME.service, and the drop-in that puts ``unit`` into the namespace.
    From its next start on, ``unit`` has the host's network. Its running process stays in the
    namespace, which no longer has a network. Raises Error.
    """
    units = machine.processes.units
    if _binds(units.read(drop_in(unit)) or "", name):
        own = systemd.ours(units, [drop_in(unit)], _MARK + machine.store.state_id())
        # afterwards the unit is no longer bound to the network's unit, so it keeps running
        systemd.drop(units, own, machine.report)
    if units.is_active(unit):
        machine.caution(f"{unit} has no network now, and that of the host from its next start on")
    units.stop_unit(network_unit(name))
    change_attach.detach(machine, name, unit)
    systemd.drop(units, [_file(name)], machine.report)
