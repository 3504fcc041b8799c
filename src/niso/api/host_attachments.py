"""Attach network namespaces of other programs: ``host.attachments``."""

from __future__ import annotations

from ipaddress import ip_address

from niso.base.errors import InvalidInput, UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import host_label, network_name, service_name
from niso.change import attach, unit_network, warnings
from niso.change.attach import Attachment, AttachmentNetwork, Request, interface_name, mac
from niso.change.deactivate import Done
from niso.look.session import ApiPart, as_usage, path, text, texts
from niso.manifest.addresses_and_ports import distinct, parse_port, static_address
from niso.manifest.policy import parse
from niso.manifest.process_keys import WAYS, rate
from niso.plan import records

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from niso.runtime.machine import Machine


Changed = Done
"""The result of `Attachments.detach`, `gc` and `apply_policies` for one attachment."""

_NETWORK_KEYS = {"interface": 1, "ip": 2, "mac": 1}
"""How many times each key may occur in the text of one network."""


class AttachRequest(NamedTuple):
    """The arguments of `Attachments.attach`.

    Exactly one of ``netns``, ``pid`` and ``new`` must be set.

    ``networks`` are names, each optionally with keys, as in
    ``backend,interface=net0,ip=10.99.1.9,mac=02:00:00:00:00:09``. The default is niso-default.
    ``ports``, ``aliases`` and the entries of the policy are written as in a manifest.
    """

    name: str
    netns: str | os.PathLike[str] | None = None  # the file of the namespace
    pid: int | None = None  # the namespace of this process
    new: bool = False  # a new namespace that niso creates
    networks: Iterable[str] = ()
    ports: Iterable[str] = ()
    aliases: Iterable[str] = ()
    allow_from: Iterable[str] | None = None
    deny_from: Iterable[str] = ()
    egress_allow: Iterable[str] | None = None
    egress_deny: Iterable[str] = ()
    log: bool = False
    bandwidth: Mapping[str, str] = {}  # "in" and "out", as in a manifest: 100M is bits per second
    owner: str = "cli"  # the program that manages the namespace
    id: str = ""  # the program's id for the namespace's container
    unit: str | None = None  # with new: a systemd unit that a drop-in puts into the namespace


class Attachments(ApiPart):
    """The API of attachments: ``host.attachments``."""

    def attach(self, request: AttachRequest) -> Attachment:
        """Connect a network namespace to networks, with published ports and a policy.

        Nothing changes if the namespace is already attached in exactly this way. Raises UsageError,
        NotFound, Conflict, KernelError, and Error if systemd refuses the unit.
        """
        self.session.require()
        given = as_usage(lambda: _complete(request))
        wanted = as_usage(lambda: _request(given))
        machine = self.session.machine_for_change(create=True)
        if given.unit is not None:
            done = unit_network.attach(machine, wanted, given.unit, _words(given))
        else:
            done = attach.attach(machine, wanted)
        warnings.attached(machine, [done])
        return done

    def detach(self, *names: str, id: str | None = None) -> tuple[Changed, ...]:
        """Detach namespaces from niso's networks and delete their records.

        Names that are not attached are skipped. With ``id``, an attachment is detached only if it
        still has this id. Without ``id``, the drop-in that puts a systemd unit into the namespace
        is removed too. Raises Conflict if a name belongs to a service.
        """
        wanted = texts(names, "names")
        machine = self.session.machine_for_change()
        return tuple(Changed(name, _detach(machine, name, id)) for name in dict.fromkeys(wanted))

    def apply_policies(self) -> tuple[Changed, ...]:
        """Apply the files in /etc/niso/policies to all attachments. If an attachment's new policy
        cannot be applied, its previous policy still applies, and Error or ErrorGroup is raised.
        Attachments whose policy does not change are left out of the result.
        """
        machine = self.session.machine_for_change()
        done = attach.apply_policies(machine)
        warnings.attached(machine, done)
        return tuple(Changed(one.service, one.changed) for one in done)

    def gc(
        self, *, owner: str | None = None, valid: Iterable[str] | None = None
    ) -> tuple[Changed, ...]:
        """Detach all attachments whose namespace no longer exists.

        Also remove networks that Podman has removed, if no service is on them. ``owner`` limits the
        call to the attachments and networks of one program. ``valid`` lists the ids that this
        program still uses: its attachments with other ids are detached too. Raises KernelError, and
        UsageError for ``valid`` without ``owner``.
        """
        from niso.engines import netavark

        ids = None if valid is None else texts(valid, "valid")
        if ids is not None and owner is None:
            raise UsageError("needs --owner", "ids are those of one owner", "--valid")
        machine = self.session.machine_for_change()
        gone = attach.collect(machine, owner, ids)
        if owner in (None, netavark.OWNER):
            gone += netavark.collect(machine)
            netavark.drop_networks(machine)
        return tuple(Changed(name, True) for name in gone)


def _detach(machine: Machine, name: str, id: str | None) -> bool:
    if id is None:
        unit = unit_network.unit_of(machine, name)
        if unit is not None:
            unit_network.detach(machine, name, unit)
            return True
    return attach.detach(machine, name, id)


def _complete(given: AttachRequest) -> AttachRequest:
    """Check that the fields of a request are lists of strings, and check the option ``unit``. With
    ``unit``, niso sets ``owner`` and ``id`` of the attachment. Raises UsageError.
    """
    given = given._replace(
        networks=texts(given.networks, "networks"),
        ports=texts(given.ports, "ports"),
        aliases=texts(given.aliases, "aliases"),
        allow_from=_entries(given.allow_from, "allow_from"),
        deny_from=texts(given.deny_from, "deny_from"),
        egress_allow=_entries(given.egress_allow, "egress_allow"),
        egress_deny=texts(given.egress_deny, "egress_deny"),
    )
    if given.unit is None:
        return given

    if not given.new:
        raise UsageError("needs --new", "niso makes the namespace of a unit", "--unit")
    unit = unit_network.unit_name(text(given.unit, "unit"))
    if (given.owner, given.id) != ("cli", ""):
        raise UsageError("sets --owner and --id", "leave these out", "--unit")
    return given._replace(unit=unit, owner=unit_network.OWNER, id=unit)


def _words(given: AttachRequest) -> list[str]:
    words = ["net", "attach", given.name, "--new", "--owner", given.owner, "--id", given.id]
    lists = {"--network": given.networks, "--port": given.ports, "--alias": given.aliases}
    for flag, values in lists.items():
        words += [word for value in values for word in (flag, value)]
    for flag, entries in (
        ("--allow-from", given.allow_from),
        ("--deny-from", given.deny_from or None),
        ("--egress-allow", given.egress_allow),
        ("--egress-deny", given.egress_deny or None),
    ):
        words += [flag, " ".join(entries)] if entries is not None else []
    if given.bandwidth:
        both = ",".join(f"{way}={rated}" for way, rated in given.bandwidth.items())
        words += ["--bandwidth", both]
    return [*words, "--log"] if given.log else words


def _request(given: AttachRequest) -> Request:
    if sum((given.netns is not None, given.pid is not None, given.new)) != 1:
        hint = "exactly one of --netns PATH, --pid N and --new"
        raise UsageError("which network namespace?", hint)
    pid = given.pid
    if pid is not None and (isinstance(pid, bool) or not isinstance(pid, int) or pid < 1):
        raise UsageError("must be the id of a process", None, "--pid", value=repr(pid))
    for way in given.bandwidth:
        if way not in WAYS:
            raise InvalidInput(f"{way!r} is not a direction", "in=RATE,out=RATE", "--bandwidth")
    there = "" if given.new else f"/proc/{pid}/ns/net" if pid else path(given.netns, "netns")
    return Request(
        service_name(text(given.name, "NAME"), "NAME"),
        there,
        tuple(map(_network, given.networks or ["niso-default"])),
        distinct(tuple(parse_port(port, "--port") for port in given.ports)),
        tuple(host_label(alias, "--alias") for alias in given.aliases),
        _policy(given),
        text(given.owner, "owner"),
        text(given.id, "id"),
        bandwidth=tuple(
            sorted((way, rate(rated, "--bandwidth")) for way, rated in given.bandwidth.items())
        ),
    )


def _network(written: str) -> AttachmentNetwork:
    """Parse a network such as ``backend,interface=net0,ip=10.99.1.9``. Raises InvalidInput."""
    name, *keys = written.split(",")
    given: dict[str, list[str]] = {word: [] for word in _NETWORK_KEYS}
    for key in keys:
        word, _, value = key.partition("=")
        if word not in given or not value or len(given[word]) >= _NETWORK_KEYS[word]:
            hint = "NAME[,interface=NAME][,ip=ADDRESS][,ip=IPV6][,mac=ADDRESS]"
            raise InvalidInput(f"{written!r} is not a valid network", hint, "--network")
        given[word].append(value)
    return AttachmentNetwork(
        network_name(name, "--network"),
        "".join(map(interface_name, given["interface"])),
        tuple(str(ip_address(static_address(ip, "--network"))) for ip in given["ip"]),
        "".join(map(mac, given["mac"])),
    )


def _policy(given: AttachRequest) -> records.Policy:
    lists = (given.allow_from, given.deny_from, given.egress_allow, given.egress_deny)
    if lists == (None, [], None, []) and not given.log:
        return records.Policy()
    # the engine writes the hosts file, whose addresses of DNS names could differ from the rules
    return parse(*lists, given.log, outside=False)


def _entries(values: Iterable[str] | None, what: str) -> list[str] | None:
    return None if values is None else texts(values, what)
