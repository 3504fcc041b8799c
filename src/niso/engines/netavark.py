"""Run as a plugin of netavark, Podman's network program, for networks with the driver niso.

The calls are ``info``, ``create``, ``setup NETNS`` and ``teardown NETNS``, with JSON on stdin and
stdout (github.com/containers/netavark, plugin-API.md; seen with Podman 5.4).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping

import niso
from niso.base import files, paths
from niso.base.errors import Error, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.report import Caution, Report, silent
from niso.engines import aardvark, plugin, protocol
from niso.plan.records import Network, Port
from niso.services import attach_request, attachments
from niso.services.attach_request import Request, Wish
from niso.services.machine import Machine

if TYPE_CHECKING:
    from typing import Any

OWNER = "podman"
API_VERSION = "1.0.0"
_CONFIGURATIONS = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")
_YOUNG_S = 60
_OPTIONS = ("mtu", "isolate", "dns", *plugin.POLICY_KEYS)
_OWN_OPTIONS = ("name", *plugin.POLICY_KEYS)


def main() -> None:
    """Carry out one call and end the process."""
    status = 0
    try:
        answer = _answer(sys.argv[1:])
    except Error as error:
        answer, status = {"error": protocol.one_line(error)}, 1
    except OSError as error:
        answer, status = {"error": f"niso: {error}"}, 1
    except protocol.MALFORMED as error:
        answer, status = {"error": f"niso: does not understand this call: {error!r}"}, 1
    if answer is not None:
        sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(status)


def _answer(words: list[str]) -> dict[str, Any] | None:
    command, *arguments = words or [""]
    if command == "info":
        return {"version": niso.__version__, "api_version": API_VERSION}
    if command not in ("create", "setup", "teardown") or (
        command != "create" and len(arguments) != 1
    ):
        raise InvalidInput(
            "this is a plugin for netavark", "create, setup NETNS, teardown NETNS or info"
        )
    try:
        given = json.loads(protocol.read_stdin())
    except ValueError as error:
        raise InvalidInput(f"stdin is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidInput("stdin is not a JSON object")
    machine = plugin.machine()
    if command == "create":
        return _create(machine, given)
    if command == "setup":
        return _setup(machine, arguments[0], given)
    _teardown(machine, given)
    return None


# --- create -----------------------------------------------------------------------------------


def _create(machine: Machine, given: dict[str, Any]) -> dict[str, Any]:
    """Create the network; return its description, completed with niso's choices.

    Only niso leases its addresses, because niso's own services can be on the same network.
    """
    drop_networks(machine, _network_name(given))
    network = _ensured(machine, given)
    return given | {
        "subnets": [{"subnet": s.cidr, "gateway": s.gateway} for s in network.subnets],
        "network_interface": network.bridge,
        "internal": network.internal,
        "ipv6_enabled": any(subnet.family == 6 for subnet in network.subnets),
        "ipam_options": {"driver": "none"},
        "dns_enabled": False,  # netavark's own name server is not used
        "options": (given.get("options") or {})
        | ({} if given.get("dns_enabled", True) else {"dns": "none"}),
    }


def _ensured(machine: Machine, given: Mapping[str, Any]) -> Network:
    """Return niso's network for a network of Podman, created as described if it does not exist.

    Raises InvalidInput for what niso does not support, Conflict if the network exists and differs.
    """
    name = _network_name(given)
    options = _checked(given.get("options"), _OPTIONS, "--opt")
    if options.get("dns", "aardvark") not in ("aardvark", "none"):
        raise InvalidInput(f"--opt dns={options['dns']}: not a name server", "aardvark or none")
    _policy(options, {}, name)  # refuse a wrong entry before the first container
    known = machine.store.network(name)
    subnets = given.get("subnets") or []
    if known is not None and _is_as_described(known, given, options.get("mtu")):
        return known
    from ipaddress import ip_network

    from niso.commands import network
    from niso.services.networks import NetworkRequest

    for subnet in subnets:
        if subnet.get("lease_range"):
            raise InvalidInput(
                "--ip-range: niso leases any address of a subnet",
                "choose a smaller --subnet; static addresses are never leased to others",
            )
    for key, option in (("routes", "--route"), ("network_dns_servers", "--dns")):
        if given.get(key):
            raise InvalidInput(f"{option}: not supported by networks of niso", "leave it out")
    mtu = plugin.mtu(options.get("mtu"), "--opt mtu")
    try:
        prefixes = tuple(str(ip_network(str(subnet["subnet"]))) for subnet in subnets)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"network {name}: {error}") from error
    request = NetworkRequest(
        name,
        prefixes,
        ipv6=bool(given.get("ipv6_enabled")) and not any(":" in prefix for prefix in prefixes),
        gateways=tuple(str(s["gateway"]) for s in subnets if s.get("gateway")),
        internal=bool(given.get("internal")),
        mtu=mtu,
    )
    if request.ipv6 and request.gateways:
        raise InvalidInput("--ipv6 with --gateway: name the IPv6 subnet too", "--subnet PREFIX")
    if network.create(machine, request) is not None:
        _note(machine, name, str(given.get("name", "")))
    return machine.store.require_network(name)


def _is_as_described(known: Network, given: Mapping[str, Any], mtu: str | None) -> bool:
    """Return whether a network is what Podman's record of it says; a setup mostly finds that."""
    have = sorted((subnet.cidr, subnet.gateway) for subnet in known.subnets)
    want = [(str(s.get("subnet")), str(s.get("gateway"))) for s in given.get("subnets") or ()]
    return (
        have == sorted(want)
        and known.internal == bool(given.get("internal"))
        and mtu in (None, str(known.mtu))
        and not any(given.get(key) for key in ("routes", "network_dns_servers"))
    )


# --- networks that Podman has removed ------------------------------------------------------------


def _note(machine: Machine, network: str, called: str) -> None:
    """Record that a network was made for Podman, and which file of Podman's describes it."""
    path = os.path.join(_notes(), network)
    note = {
        "file": os.path.join(_network_folder(), f"{called}.json"),
        "made_at": machine.store.network_made_at(network),
    }
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    files.replace(path, json.dumps(note).encode(), 0o600)


def _notes() -> str:
    return os.path.join(paths.state_dir(), "podman")


def drop_networks(machine: Machine, wanted: str = "", report: Report = silent) -> None:
    """Remove the networks that Podman has removed and no service is on.

    Podman does not call its plugin for that. It writes the file of a new network after the call,
    so young ones are kept, except for ``wanted``, which Podman is about to create. One that cannot
    be removed is reported. Raises OSError.
    """
    from niso.commands import network

    try:
        names = sorted(os.listdir(_notes()))
    except FileNotFoundError:
        return
    store = machine.store
    for name in names:
        if "." in name:  # another process is writing it
            continue
        path = os.path.join(_notes(), name)
        content = files.read(path)
        note = json.loads(content.decode()) if content is not None else {}
        if not isinstance(note, dict) or store.network_made_at(name) != note.get("made_at"):
            files.remove(path)  # another network of that name
            continue
        is_young = time.time() - os.stat(path).st_mtime < _YOUNG_S
        if os.path.lexists(str(note["file"])) or (is_young and name != wanted):
            continue
        if store.members(name) or store.held_by(name):
            continue
        try:
            network.remove(machine, [name])
        except Error as error:
            report(Caution(f"network {name!r}, which Podman has removed, is left: {error}"))
            continue
        files.remove(path)
        report(Caution(f"network {name!r} is removed, as Podman has removed it"))


def _network_folder() -> str:
    """Return the folder of Podman's descriptions of networks (containers.conf(5))."""
    import glob
    import tomllib

    with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
        words = os.fsdecode(file.read()).split("\0")
    option = "--network-config-dir"
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == option or word.startswith(f"{option}="):
            return word.partition("=")[2] or after
    own = os.environ.get("CONTAINERS_CONF")
    read = [own] if own else list(_CONFIGURATIONS)
    if not own:
        read += sorted(glob.glob(f"{_CONFIGURATIONS[-1]}.d/*.conf"))
    folder = "/etc/containers/networks"
    for path in (*read, os.environ.get("CONTAINERS_CONF_OVERRIDE", "")):
        content = files.read(path) if path else None
        if content is not None:
            network = tomllib.loads(content.decode()).get("network", {})
            folder = str(network.get("network_config_dir") or folder)
    return folder


def _network_name(given: Mapping[str, Any]) -> str:
    """Return niso's name for a network: the same name, or for ``shop_back`` a similar one.

    Raises InvalidInput for a name with another meaning in niso, such as ``none``.
    """
    from niso.manifest.values import network_name

    name = str(given.get("name", ""))
    try:
        return network_name(name, "network name")
    except InvalidInput:
        similar = plugin.label(name)
        if similar == name or not name:
            raise
        return similar


def _checked(given: Any, known: tuple[str, ...], what: str) -> dict[str, str]:
    """Return options as texts. Raises InvalidInput for an unknown one, which could be a policy."""
    options = {str(key): str(value) for key, value in (given or {}).items()}
    if unknown := sorted(options.keys() - set(known)):
        raise InvalidInput(
            f"{what} {unknown[0]}: niso does not know this option", f"one of {', '.join(known)}"
        )
    return options


def _policy(options: Mapping[str, str], own: Mapping[str, str], name: str) -> Any:
    """Return the policy that the options of both network and container allow."""
    from niso.services.policies import combined

    return combined(
        plugin.policy({key: some[key] for key in plugin.POLICY_KEYS if key in some}, where)
        for some, where in ((options, f"network-{name}."), (own, "option."))
    )


# --- setup, teardown ---------------------------------------------------------------------------


def _setup(machine: Machine, netns: str, given: Mapping[str, Any]) -> dict[str, Any]:
    network = _ensured(machine, given["network"])
    mine = given.get("network_options") or {}
    container, called = str(given["container_id"]), str(given["container_name"])
    options = _checked(given["network"].get("options"), _OPTIONS, "--opt")
    own = _checked(mine.get("options"), _OWN_OPTIONS, f"--network {network.name}:")
    store = machine.store
    there = machine.kernel.cookie_at(netns)
    known = store.attachments.all(OWNER, container)
    same = next((attached for attached in known if there and attached.cookie == there), None)
    if same is not None:
        name = same.service
    elif known:
        name = known[0].service
    else:
        name = plugin.free_name(machine, own.get("name") or called, container)
    mac = str(mine.get("static_mac") or "")
    wish = Wish(
        network.name,
        attach_request.interface_name(str(mine.get("interface_name") or "eth0")),
        tuple(map(plugin.address, mine.get("static_ips") or ())),
        attach_request.mac(mac) if mac else "",
    )
    request = Request(
        name,
        netns,
        (wish,),
        tuple(map(_port, given.get("port_mappings") or ())),
        plugin.aliases((called, *(mine.get("aliases") or ())), name),
        owner=OWNER,
        id=container,
        given=called,
        policies=((network.name, _policy(options, own, network.name)),),
    )
    if same is not None:
        request = plugin.joined(store, request)
        # netavark calls for the networks in any order, in which Podman may count interfaces too
        request = request._replace(wishes=tuple(sorted(request.wishes)))
    attachments.attach(machine, request)
    has_names = options.get("dns") != "none"
    if has_names:
        aardvark.update(machine, network.name, OWNER)
    resolvers = aardvark.servers(network) if has_names else []
    link = next(x for x in store.attachments.links(name) if x.network == network.name)
    addresses = [address for on, address in store.addresses(name) if on == network.name]
    return {
        "dns_search_domains": [aardvark.DOMAIN] if resolvers else [],
        "dns_server_ips": resolvers,
        "interfaces": {
            link.interface: {
                "mac_address": link.mac or store.derived_mac(name, network.name),
                "subnets": [
                    {
                        "ipnet": f"{address}/{subnet.cidr.rpartition('/')[2]}",
                        "gateway": subnet.gateway,
                    }
                    for subnet, address in zip(network.subnets, addresses, strict=True)
                ],
            }
        },
    }


def _port(given: Mapping[str, Any]) -> Port:
    """Parse a published port. Raises InvalidInput."""
    try:
        host, inner = int(given["host_port"]), int(given["container_port"])
        count = int(given.get("range") or 1)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"a port mapping is not valid: {error}") from error
    proto = str(given.get("protocol") or "tcp")
    return plugin.port(str(given.get("host_ip") or ""), host, inner, proto, count)


def _teardown(machine: Machine, given: Mapping[str, Any]) -> None:
    """Detach a container from a network; no-op if it is not on it."""
    try:
        network = _network_name(given["network"])
    except InvalidInput:
        return  # no container can be on it
    for attached in machine.store.attachments.all(OWNER, str(given["container_id"])):
        plugin.take_off(machine, attached, lambda link: link.network == network)
    if machine.store.network(network) is not None:
        aardvark.update(machine, network, OWNER)
