"""Share code between the container engines' plugins: calls, names, ports, policies and errors.

An engine waits for its plugin, so this module imports code for manifests only when a call needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping

from niso.base import files, paths
from niso.base.errors import Conflict, Error, ErrorGroup, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, Any
from niso.base.names import host_label, packed, unpacked
from niso.base.native import from_json, sha256, to_json
from niso.change import attach
from niso.change.attach import POD_POLICY, Request, combined
from niso.kernel.real import Kernel
from niso.plan.records import ANY, Entry, NetworkRecord, Policy, PortMapping, SubnetRecord
from niso.runtime.machine import Machine
from niso.store.attached_rows import AttachedLink, AttachedRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.cluster.config import Config

_LONGEST_NAME = 40
"""The maximum length of an attachment's name. A longer name is cut, and a hash is added."""

_SIMILAR = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")


class _LateProcesses:
    """A proxy for `Processes`, whose 15 modules are imported on first use, in an undo."""

    def __getattr__(self, name: str) -> Any:
        from niso.runtime.processes import Processes

        return getattr(Processes(), name)


def machine() -> Machine:
    """Open this host's store, kernel and processes (`Machine`). Raises Error without root."""
    if os.geteuid() != 0:
        raise Error("niso needs root", "niso has no rootless networks")
    paths.is_command = True
    processes: Any = _LateProcesses()
    kernel = Kernel()
    if not os.path.lexists(paths.database()):
        from niso.look.session import refuse

        refuse(kernel, processes)
    return Machine(Store.open(), kernel, processes, _joined)


def _joined() -> Config | None:
    from niso.cluster import config

    return config.load()


def find(
    machine: Machine, owner: str, id: str, netns: str, wanted: str, similar: bool = False
) -> tuple[AttachedRow | None, str]:
    """Return (attachment of a container's namespace, its name).

    If the namespace is not attached, returns (None, name of the container's former attachment), or
    else (None, an unused name like ``wanted``). ``owner`` is the engine, ``id`` the container, and
    ``netns`` the path of its namespace. With ``similar``, a name that differs from ``wanted`` only
    in capital letters, ``_`` and ``.`` gets no hash.
    """
    known = machine.store.attachments.all(owner, id)
    there = machine.kernel.cookie_at(netns)
    same = next((attached for attached in known if there and attached.cookie == there), None)
    if same is None and not known:
        return None, free_name(machine, wanted, id, similar)
    return same, (same or known[0]).service


def endpoint(
    store: Store, name: str, network: NetworkRecord
) -> tuple[AttachedLink, str, list[tuple[SubnetRecord, str]]]:
    """Return (interface, MAC address, IP addresses) of the attachment ``name`` on a network. Each
    IP address is a pair (subnet, address with prefix length).
    """
    link = next(link for link in store.attachments.links(name) if link.network == network.name)
    own = [address for on, address in store.addresses(name) if on == network.name]
    addresses = [
        (subnet, f"{address}/{subnet.cidr.rpartition('/')[2]}")
        for subnet, address in zip(network.subnets, own, strict=True)
    ]
    return link, link.mac or store.derived_mac(name, network.name), addresses


def label(text: str, similar: bool = False) -> str:
    """Convert a string to a valid service name. A hash is appended if the string was changed.

    With ``similar``, no hash is appended if only capital letters, ``_`` and ``.`` were replaced:
    ``My_Web.1`` becomes ``my-web-1``. Two strings may then become the same name.
    """
    lower = text.lower() if text.isascii() else text
    plain = "".join(c if c.isascii() and (c.islower() or c.isdigit()) else "-" for c in lower)
    words = [word for word in plain.split("-") if word]
    name = "-".join(words) or "c"
    is_same = name == (plain if similar and not set(lower) - _SIMILAR else text)
    if not name[0].isalpha() or name in ("host", "localhost") or name.startswith("ip6-"):
        name, is_same = f"c-{name}", False
    if is_same and len(name) <= _LONGEST_NAME:
        return name
    short = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:5]
    return f"{name[:_LONGEST_NAME].rstrip('-')}-{short}"


def aliases(texts: Iterable[object], but: str) -> tuple[str, ...]:
    """Return the valid aliases among ``texts``, in lower case, without the name ``but``."""
    valid: dict[str, None] = {}
    for text in texts:
        try:
            valid[host_label(str(text).lower(), "alias")] = None
        except InvalidInput:
            continue  # `label` derives a valid name from it
    valid.pop(but, None)
    return tuple(valid)


def address(text: object) -> str:
    """Return an address in canonical form. Raises ValueError if it is not an address."""
    try:
        return unpacked(packed(str(text)))
    except OSError:
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None


def mac(text: object) -> str:
    """Return a MAC address in canonical form, or "" for None or "". Raises InvalidInput."""
    return attach.mac(str(text)) if text else ""


def port(host_ip: str, host: int, container: int, proto: str, count: int = 1) -> PortMapping:
    """Build a published port from an engine's values. Raises InvalidInput for an invalid value. If
    ``host`` is 0, niso chooses a host port. ``count`` is the length of a range of ports.
    """
    from niso.manifest.addresses_and_ports import parse_port  # most calls have no port

    address = f"[{host_ip}]:" if ":" in host_ip else f"{host_ip}:" if host_ip else ANY
    spans = [f"{n}-{n + count - 1}" if count > 1 else str(n) for n in (host, container)]
    if not host:
        spans[0] = ""
    return parse_port(f"{address}{spans[0]}:{spans[1]}/{proto.lower() or 'tcp'}", "port")


def mtu(text: str | None, option: str) -> int | None:
    """Parse an MTU option to bytes, or return None if it was not given. Raises InvalidInput."""
    try:
        return None if text is None else int(text)
    except ValueError:
        raise InvalidInput(f"{option}={text}: not a number", f"{option}=1400") from None


def options(given: Any, known: tuple[str, ...], what: str, prefix: str = "") -> dict[str, str]:
    """Return an engine's options {key: value} as strings.

    Raises InvalidInput for an option that is not in ``known``: it may be a mistyped policy. The
    error names the option after ``what`` and ``prefix``.
    """
    strings = {str(key): str(value) for key, value in (given or {}).items()}
    if unknown := sorted(strings.keys() - set(known)):
        raise InvalidInput(
            f"{what} {prefix}{unknown[0]}: niso does not know this option",
            f"one of {', '.join(f'{prefix}{key}' for key in known)}",
        )
    return strings


LABEL = "niso."
"""The beginning of the keys of containers' labels that are options of niso."""
OWN_OPTIONS = ("name", "aliases", "allow_from", "deny_from", "egress_allow", "egress_deny", "log")
"""The options of a container in Docker and Podman."""


def labels(
    given: object, image: Callable[[], object], own: Mapping[str, str], where: str
) -> dict[str, str]:
    """Return {KEY: value} from a container's labels ``niso.KEY``, without the keys of ``own``.

    ``given`` are all labels of the container. ``image`` returns the labels of its image, or None if
    they cannot be read. ``own`` are options that the container got from its engine instead of
    labels, and ``where`` is the text before their keys in error messages. Raises InvalidInput for
    an unknown label, a label that contradicts ``own``, and a label of the image: an image's author
    must not choose a name that other services' policies allow.
    """
    some = given if isinstance(given, dict) else {}
    found = {str(key): str(value) for key, value in some.items() if str(key).startswith(LABEL)}
    inherited = image() if found else None
    for key, value in sorted(found.items()):
        hint = f"{where}{key.removeprefix(LABEL)}"
        if not isinstance(inherited, dict):
            raise InvalidInput(f"label {key}: the labels of the image cannot be read", hint)
        if inherited.get(key) == value:
            reason = f"label {key} is one of the image, from which niso takes none"
            raise InvalidInput(reason, f"use an image without it, and {hint}")
    short = {key.removeprefix(LABEL): value for key, value in found.items()}
    result = options(short, OWN_OPTIONS, "label", LABEL)
    for key in sorted(result.keys() & own.keys()):
        if words(result.pop(key)) != words(own[key]):
            raise InvalidInput(f"label {LABEL}{key} and {where}{key} differ", "omit one of them")
    return result


def own_aliases(options: Mapping[str, str]) -> list[str]:
    """Return the host names in the option ``aliases``. Raises InvalidInput if one is invalid."""
    return [host_label(word.lower(), "aliases") for word in words(options.get("aliases", ""))]


def words(text: str) -> list[str]:
    """Split the value of an option at white space and commas."""
    return text.replace(",", " ").split()


def policies(*given: tuple[Mapping[str, object], str]) -> Policy:
    """Combine mappings of policy keys into a policy that allows only packets that each allows.
    ``given`` are pairs (mapping, prefix of the keys in error messages). Other keys are ignored.
    """
    return combined(
        policy({key: some[key] for key in POLICY_KEYS if key in some}, where)
        for some, where in given
    )


def policy(given: Mapping[str, object], where: str) -> Policy:
    """Parse a mapping of `POLICY_KEYS`. Errors (InvalidInput) put ``where`` before keys."""
    if not given:
        return Policy()
    from niso.manifest.policy import denials, parse_entry  # most calls have none

    def entries(key: str) -> tuple[Entry, ...] | None:
        if key not in given:
            return None
        value = given[key]
        texts = words(value) if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidInput(f"{where}{key} is not a list of entries", "entries like web:80")
        egress = key.startswith("egress")
        return tuple(
            parse_entry(text, f"{where}{key}[{number}]", egress)
            for number, text in enumerate(texts)
        )

    return Policy(
        entries("allow_from"),
        entries("deny_from") or (),
        entries("egress_allow"),
        denials(entries("egress_deny") or ()),
        flag(given.get("log", False), f"{where}log"),
    )


def flag(value: object, where: str) -> bool:
    """Parse an engine option: true, false, 1 or 0. Raises InvalidInput for the key ``where``."""
    text = str(value).lower()
    if text not in ("true", "1", "false", "0"):
        raise InvalidInput(f"{where}={value}: not a truth value", "true or false")
    return text in ("true", "1")


def free_name(machine: Machine, wanted: str, id: str, similar: bool = False) -> str:
    """Return an unused name for an attachment, made from ``wanted``, or from ``wanted`` and ``id``
    if the first name is taken. With ``similar``, a name that differs from ``wanted`` only in
    capital letters, ``_`` and ``.`` gets no hash.
    """
    name = label(wanted, similar)
    store = machine.store
    row, held = store.service(name), store.attachments.get(name)
    is_free = row is None or (held is not None and not (row.active and held.lives(machine.kernel)))
    return name if is_free else label(f"{name}_{id}")


def joined(store: Store, request: Request) -> Request:
    """Add the present networks, ports and aliases of an attachment to a request for a new network.

    The policy of a Kubernetes pod is added too. Returns the new request. Raises Conflict if the
    attachment has another interface on the new network, or the same interface on another network.
    """
    now = attach.current(store, request.name)
    if now is None:
        return request
    (new,) = request.networks
    networks = list(now.networks)
    for at, entry in enumerate(networks):
        if (entry.network == new.network) != (entry.interface == new.interface):
            raise Conflict(
                f"{request.name} is on {entry.network} as {entry.interface} already",
                "an interface for each network",
            )
        if entry.network == new.network:
            networks[at] = new
    if new not in networks:
        networks.append(new)
    if POD_POLICY in dict(now.labels) and POD_POLICY not in dict(request.labels):
        labels = {**dict(request.labels), **dict(now.labels)}
        request = request._replace(policy=now.policy, labels=tuple(sorted(labels.items())))
    return request._replace(
        networks=tuple(networks),
        ports=tuple(dict.fromkeys((*now.ports, *request.ports))),
        aliases=tuple(dict.fromkeys((*now.aliases, *request.aliases))),
        bandwidth=tuple(sorted({**dict(now.bandwidth), **dict(request.bandwidth)}.items())),
        policies=tuple(sorted({**dict(now.policies), **dict(request.policies)}.items())),
    )


def take_off(machine: Machine, attached: AttachedRow, goes: Callable[[AttachedLink], bool]) -> None:
    """Remove the interfaces of ``attached`` for which ``goes`` returns true. If all go, detach."""
    store = machine.store
    links = store.attachments.links(attached.service)
    left = {link.network for link in links if not goes(link)}
    if len(left) == len(links) and links:
        return
    now = attach.current(store, attached.service)
    if left and now is not None and attached.lives(machine.kernel):
        networks = tuple(entry for entry in now.networks if entry.network in left)
        policies = tuple((on, policy) for on, policy in now.policies if on in left)
        left_over = now._replace(networks=networks, policies=policies)
        attach.attach(machine, left_over, instead_of=attached)
    else:
        attach.detach(machine, attached.service, attached.id)


POLICY_KEYS = ("allow_from", "deny_from", "egress_allow", "egress_deny", "log")
"""The keys that `policy` parses."""

_MOST_BYTES = 4 << 20
"""The maximum number of bytes on stdin. The annotations of a pod have at most 256 KiB."""

MALFORMED = (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError)
"""Exceptions that a malformed call raises, before anything has changed."""


def run(call: Callable[[], object], failed: Callable[[Exception], object]) -> None:
    """Print the result of ``call`` as JSON and exit with 0. After an error, prints the result of
    ``failed`` and exits with 1. A result None is not printed.
    """
    status = 0
    try:
        answer = call()
    except (Error, OSError, *MALFORMED) as error:
        answer, status = failed(error), 1
    if answer is not None:
        sys.stdout.write(f"{to_json(answer)}\n")
    sys.stdout.flush()
    os._exit(status)


def read_object() -> dict[str, Any]:
    """Read a JSON object from stdin. Raises InvalidInput, OSError."""
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InvalidInput("stdin: the configuration is too long")
    try:
        given = from_json(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"stdin is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidInput("stdin is not a JSON object")
    return given


def load(path: str) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if the file is missing or has another JSON value.
    Raises ValueError for other content.
    """
    content = files.read(path)
    value = from_json(content.decode()) if content is not None else None
    return value if isinstance(value, dict) else None


def save(path: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically to a file that only root can read."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    files.replace(path, to_json(value).encode(), 0o600)


def one_line(error: Exception, call: str = "this call") -> str:
    """Format an error as one line for the engine, with the error's hint if it has one.

    ``call`` names the engine's call, for errors about its arguments.
    """
    if isinstance(error, ErrorGroup):
        return "; ".join(map(one_line, error.errors))
    if isinstance(error, Error):
        return f"niso: {error.message}{f' ({error.hint})' if error.hint else ''}"
    return f"niso: {error if isinstance(error, OSError) else malformed(error, call)}"


def malformed(error: Exception, call: str) -> str:
    """Format ``error``, one of `MALFORMED`, as a message: a call lacks a key or is malformed.

    ``call`` names the engine's call in the message.
    """
    what = f"has no {error}" if isinstance(error, KeyError) else f"is malformed: {error}"
    return f"{call} {what}"
