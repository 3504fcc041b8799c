"""Run as a CNI plugin: attach containers of containerd, Nomad and others to niso's networks.

The specification is containernetworking/cni, SPEC.md, versions 0.3.0 to 1.1.0. If niso is in a list
of plugins, the engine passes the key ``prevResult``. For ADD, this is the result of the plugins
before niso, into which niso merges its own result. For CHECK and DEL, ``prevResult`` is the result
of the whole list.

If the configuration has the key ``kubernetes``, a pod is attached with a policy that allows only
connections from the host. The agent (`niso.engines.pod_agent`) computes the pod's network policies,
and then replaces this policy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from niso.base import names
from niso.base.errors import Error, ErrorGroup, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, Any, NamedTuple
from niso.base.names import network_name, prefix
from niso.base.native import lazy
from niso.change import attach
from niso.change.attach import AttachmentNetwork, Request
from niso.engines import plugin
from niso.plan.records import NetworkRecord, Policy, PortMapping, first_free
from niso.runtime.machine import Machine
from niso.store.attached_rows import CHOSEN_ALIASES, CHOSEN_IP, NAMESPACE, AttachedLink, AttachedRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.engines import pod_agent
    from niso.kernel import libnftables
    from niso.manifest import values
    from niso.plan.subnets import NetworkRequest
else:
    libnftables, values = lazy("niso.kernel.libnftables"), lazy("niso.manifest.values")

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
WRONG_VARIABLE, WRONG_CONFIG, KERNEL = 4, 7, 100
_WRONG_VERSION, _NOT_READ, _NOT_JSON = 1, 5, 6


class Failure(Error):
    """An error for the container engine, with an error code of the CNI specification."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message, details)
        self.code = code


def main() -> None:
    """Carry out one call of the container engine, print the answer, and end the process."""
    config: dict[str, Any] = {"cniVersion": VERSIONS[-1]}

    def call() -> object:
        config.update({"cniVersion": "0.3.0"} | _config())
        return _answer(os.environ.get("CNI_COMMAND", ""), str(config["cniVersion"]), config)

    plugin.run(call, lambda error: _error(str(config["cniVersion"]), error))


def _error(version: str, error: Exception) -> dict[str, object]:
    code, details = KERNEL, ""
    if isinstance(error, ErrorGroup):
        message = "; ".join(one.message for one in error.errors)
        details = "; ".join(one.hint or "" for one in error.errors)
    elif isinstance(error, Error):
        code = WRONG_CONFIG if isinstance(error, InvalidInput) else getattr(error, "code", KERNEL)
        message, details = error.message, error.hint or ""
    elif isinstance(error, OSError):
        message = f"{error.filename or 'system call'}: {error.strerror}"
    else:
        code, message = WRONG_CONFIG, plugin.malformed(error, "this call")
    shown = version if version in VERSIONS else VERSIONS[-1]
    return {"cniVersion": shown, "code": code, "msg": f"niso: {message}", "details": details}


def _config() -> dict[str, Any]:
    try:
        return plugin.read_object()
    except OSError as error:
        raise Failure(_NOT_READ, f"stdin: {error.strerror}") from error
    except InvalidInput as error:
        raise Failure(_NOT_JSON, error.message) from error


def _answer(command: str, version: str, config: dict[str, Any]) -> dict[str, Any] | None:
    if command == "VERSION":
        shown = version if version in VERSIONS else VERSIONS[-1]
        return {"cniVersion": shown, "supportedVersions": list(VERSIONS)}
    if command not in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        raise Failure(WRONG_VARIABLE, f"CNI_COMMAND is {command!r}, and no command of CNI")
    if version not in VERSIONS:
        reason = f"cniVersion {version!r} is not supported"
        raise Failure(_WRONG_VERSION, reason, f"supported: {', '.join(VERSIONS)}")
    commands = {"ADD": _add, "DEL": _delete, "CHECK": _check, "GC": _gc, "STATUS": _status}
    return commands[command](_call(command, version, config))


OWNER = "cni"
_WAYS = {"in": "ingress", "out": "egress"}
_SINCE_0_4, _SINCE_1_1 = VERSIONS[2:], VERSIONS[4:]
_NOT_USABLE, _DIFFERENT, _EXISTS = 50, 101, 102
_KEYS = {
    *("cniVersion", "name", "type", "network", "subnets", "internal", "ipv6", "mtu", "policy"),
    "multicast",
    *("kubernetes", "annotations", "names", "capabilities", "runtimeConfig", "args", "dns"),
    *("prevResult", "ipMasq", "disableCheck", "disableGC"),
    *("cni.dev/valid-attachments", "cni.dev/attachments"),
}
_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
_PREFIX = "niso.io/"
CHOSEN = ("aliases", "ip")
"""The annotations that users may write only if the configuration has the key ``annotations``."""
_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Call(NamedTuple):
    """The checked parameters of a CNI call, from environment variables and stdin."""

    version: str
    config: Mapping[str, Any]
    network: str
    container: str
    netns: str
    interface: str
    args: Mapping[str, str]


def _call(command: str, version: str, config: dict[str, Any]) -> Call:
    container, interface = (os.environ.get(f"CNI_{n}", "") for n in ("CONTAINERID", "IFNAME"))
    netns = os.environ.get("CNI_NETNS", "")
    if command in ("ADD", "DEL", "CHECK"):
        if not container or not container[0].isalnum() or not _ID.issuperset(container):
            raise Failure(WRONG_VARIABLE, f"CNI_CONTAINERID {container!r} is not valid")
        if not interface:
            raise Failure(WRONG_VARIABLE, "CNI_IFNAME is missing")
        try:
            attach.interface_name(interface)
        except InvalidInput as error:
            raise Failure(WRONG_VARIABLE, f"CNI_IFNAME: {error.message}") from error
    if command in ("ADD", "CHECK") and not netns:
        raise Failure(WRONG_VARIABLE, "CNI_NETNS is missing")
    if command == "CHECK" and version not in _SINCE_0_4:
        raise Failure(WRONG_VARIABLE, f"version {version} has no CHECK")
    if command in ("GC", "STATUS") and version not in _SINCE_1_1:
        raise Failure(WRONG_VARIABLE, f"version {version} has no {command}")
    if command != "DEL":  # DEL must succeed even after the configuration was changed
        _check_config(config)
    name = config.get("network", config.get("name"))
    if not isinstance(name, str):
        raise Failure(WRONG_CONFIG, "the configuration has no name")
    # K8S_POD_NAME=web;IP=10.99.1.9
    pairs = (pair.partition("=") for pair in os.environ.get("CNI_ARGS", "").split(";"))
    args = _once(((key, value) for key, equals, value in pairs if equals), "CNI_ARGS: ")
    network = network_name(name, "network")
    return Call(version, config, network, container, netns, interface, args)


def _check_config(config: Mapping[str, Any]) -> None:
    if "ipam" in config:
        raise Failure(WRONG_CONFIG, "ipam: niso leases addresses itself", "remove the key")
    if unknown := sorted(config.keys() - _KEYS):
        raise Failure(WRONG_CONFIG, f"{unknown[0]}: unknown key", f"known: {sorted(_KEYS)}")
    kinds: dict[str, type] = {"internal": bool, "ipv6": bool, "mtu": int, "policy": dict}
    kinds["multicast"] = bool
    kinds |= {"runtimeConfig": dict, "names": str, "subnets": list, "kubernetes": dict}
    for key, kind in kinds.items():
        if key in config and not isinstance(config[key], kind):
            raise Failure(WRONG_CONFIG, f"{key} has the wrong type")
    chosen = config.get("annotations", [])
    if not isinstance(chosen, list) or not all(word in CHOSEN for word in chosen):
        words = " and ".join(CHOSEN)
        raise Failure(WRONG_CONFIG, f"annotations: a list that may have {words}")
    form = config.get("names", "").replace("{pod}", "").replace("{namespace}", "")
    if "{" in form or "}" in form:
        raise Failure(WRONG_CONFIG, "names: only {pod} and {namespace} are replaced")
    if config.get("policy", {}).keys() - set(plugin.POLICY_KEYS):
        known = ", ".join(plugin.POLICY_KEYS)
        raise Failure(WRONG_CONFIG, f"policy: only {known} are known keys")
    if not all(isinstance(cidr, str) for cidr in config.get("subnets", ())):
        raise Failure(WRONG_CONFIG, "subnets is not a list of texts")


def _add(call: Call) -> dict[str, Any]:
    runtime = _folded(call.config.get("runtimeConfig", {}))
    servers = runtime.get("dns") or {}
    keys = {"servers": "nameservers", "searches": "search", "options": "options"}
    if not isinstance(servers, dict) or servers.keys() - keys:
        raise Failure(WRONG_CONFIG, f"runtimeConfig.dns has other keys than {', '.join(keys)}")
    machine = plugin.machine()
    store = machine.store
    _require_namespace(machine, call)
    waits, is_chained = "kubernetes" in call.config, call.config.get("prevResult") is not None
    with store.reading():
        same, name = plugin.find(machine, OWNER, call.container, call.netns, _given(call))
        require_free(store, call, same)
        if waits:
            require(call, same)
        request = _request(call, runtime, name)
        if waits:
            request = closed(store, call, request, same)
        if same is not None:
            request = plugin.joined(store, request)
        network = store.network(call.network)
    if network is None:
        from niso.change import networks  # not for each container

        networks.create(machine, _wanted(call.network, call.config))
    else:
        _require_configured(network, call.config)
    # fails if the attachment has changed: the agent may have applied a stricter policy
    done = attach.attach(machine, request, instead_of=same)
    if waits:
        wait(machine, call, done.service)
    with store.reading():
        own = _result(store, call, done.service)
    if any(servers.values()):
        own["dns"] = {keys[key]: value for key, value in servers.items() if value}
    return merged(call, own) if is_chained else own


def _require_namespace(machine: Machine, call: Call) -> None:
    if machine.kernel.cookie_at(call.netns) is None:
        raise Failure(WRONG_VARIABLE, f"CNI_NETNS: {call.netns} is not a network namespace")


def _folded(value: Any) -> dict[str, Any]:
    """Convert all keys of nested objects to lower case: containerd writes HostPort for hostPort."""

    def fold(inner: Any) -> Any:
        if isinstance(inner, dict):
            return _once(((str(key).lower(), fold(item)) for key, item in inner.items()), "")
        return [fold(item) for item in inner] if isinstance(inner, list) else inner

    folded = fold(value)
    return folded if isinstance(folded, dict) else {}


def _wanted(name: str, config: Mapping[str, Any]) -> NetworkRequest:
    from niso.plan.subnets import NetworkRequest

    return NetworkRequest(
        name,
        tuple(config.get("subnets", ())),
        ipv6=config.get("ipv6", False),
        internal=config.get("internal", False),
        mtu=config.get("mtu") or None,
        multicast=config.get("multicast", False),
    )


def _require_configured(network: NetworkRecord, config: Mapping[str, Any]) -> None:
    there = {subnet.cidr for subnet in network.subnets}
    subnets, has_ipv6 = set(config.get("subnets", ())), any(":" in cidr for cidr in there)
    if subnets and subnets != there:
        subnets = set(map(str, _wanted(network.name, config).nets))
    # Without `subnets` all subnets are accepted. With `ipv6`, niso has chosen the IPv6 subnet.
    is_chosen = {":" in cidr for cidr in there - subnets} == {True} and config.get("ipv6")
    differs = {
        "internal": config.get("internal", network.internal) != network.internal,
        "multicast": config.get("multicast", network.multicast) != network.multicast,
        "mtu": (config.get("mtu") or network.mtu) != network.mtu,
        "ipv6": not subnets and config.get("ipv6", has_ipv6) != has_ipv6,
        "subnets": subnets and not (subnets <= there and (subnets == there or is_chosen)),
    }
    for key in (key for key, is_different in differs.items() if is_different):
        raise Failure(
            WRONG_CONFIG,
            f"{key}: network {network.name} exists and differs",
            f"match it (niso net inspect {network.name}), or choose another name",
        )


def _given(call: Call) -> str:
    pod, space = (call.args.get(f"K8S_POD_{word}", "") for word in ("NAME", "NAMESPACE"))
    if not pod:
        return call.container
    form = str(call.config.get("names", "{pod}-{namespace}"))
    return form.replace("{pod}", pod).replace("{namespace}", space)


def _request(call: Call, runtime: Mapping[str, Any], name: str) -> Request:
    notes = runtime.get(_ANNOTATIONS) or {}
    if not isinstance(notes, dict):  # it may contain policies, which must not be ignored
        raise Failure(WRONG_CONFIG, f"{_ANNOTATIONS} is not an object")
    prefixed = [(key, str(value)) for key, value in notes.items() if key.startswith(_PREFIX)]
    own = {key.removeprefix(_PREFIX): value for key, value in prefixed}
    for word in CHOSEN:
        if own.get(word) and word not in call.config.get("annotations", ()):
            raise Failure(
                WRONG_CONFIG,
                f"annotation {_PREFIX}{word}: the configuration of {call.network} does not let"
                " users of pods choose it",
                f'"annotations": ["{word}"] in the configuration lets them',
            )
    ips = [*(runtime.get("ips") or ()), call.args.get("IP", ""), own.get("ip", "")]
    said = runtime.get("aliases") or ()
    listed = [*(said.get(call.network, ()) if isinstance(said, dict) else said)]
    chosen = own.get("aliases", "").replace(",", " ").split()
    labels = {
        NAMESPACE: call.args.get("K8S_POD_NAMESPACE", ""),
        CHOSEN_ALIASES: " ".join(plugin.aliases(chosen, name)),
        CHOSEN_IP: _address(own["ip"]) if own.get("ip") else "",
    }
    entry = AttachmentNetwork(
        call.network,
        call.interface,
        tuple(dict.fromkeys(_address(str(ip)) for ip in ips if ip)),
        plugin.mac(runtime.get("mac") or call.args.get("MAC")),
    )
    return Request(
        name,
        call.netns,
        (entry,),
        tuple(dict.fromkeys(_ports(runtime.get("portmappings") or ()))),
        plugin.aliases([*listed, *chosen], name),
        owner=OWNER,
        id=call.container,
        given=_given(call),
        labels=tuple((key, value) for key, value in labels.items() if value),
        bandwidth=_bandwidth(runtime.get("bandwidth")),
        policies=((call.network, _policy(call, own)),),
    )


def _bandwidth(given: Any) -> tuple[tuple[str, int], ...]:
    rates = {way: given.get(f"{key}rate") for way, key in _WAYS.items()} if given else {}
    return tuple(
        (way, values.rate_of_bits(int(rate), "bandwidth", rate))
        for way, rate in rates.items()
        if rate
    )


def _address(text: str) -> str:
    from niso.manifest.addresses_and_ports import static_address

    return plugin.address(static_address(text.partition("/")[0], "ips"))


def _ports(mappings: Any) -> Iterator[PortMapping]:
    for one in mappings if isinstance(mappings, list) else ():
        try:
            host, inner = int(one.get("hostport", 0)), int(one.get("containerport", 0))
        except (TypeError, ValueError, AttributeError) as error:
            raise Failure(WRONG_CONFIG, "portMappings: a port is not a number") from error
        if host:  # 0 means not published
            ip, proto = str(one.get("hostip") or ""), str(one.get("protocol") or "tcp")
            yield plugin.port(ip, host, inner, proto)


def _policy(call: Call, notes: Mapping[str, str]) -> Policy:
    """Return the policy that allows only packets that configuration, annotations and CNI_ARGS all
    allow. ``notes`` are the annotations {key: value}. Raises Failure for an unknown key.
    """
    noted = _once(((key.replace("-", "_"), value) for key, value in notes.items()), _PREFIX)
    own = [(key[5:].lower(), value) for key, value in call.args.items() if key[:5] == "NISO_"]
    args = _once(own, "NISO_")
    if unknown := sorted(args.keys() - set(plugin.POLICY_KEYS)):
        raise Failure(WRONG_CONFIG, f"CNI_ARGS: NISO_{unknown[0].upper()} is unknown")
    if unknown := sorted(noted.keys() - {*plugin.POLICY_KEYS, "aliases", "ip"}):
        wrong = unknown[0].replace("_", "-")
        raise Failure(WRONG_CONFIG, f"annotation {_PREFIX}{wrong} is unknown")
    given = call.config.get("policy", {})
    return plugin.policies((given, "policy."), (noted, _PREFIX), (args, "NISO_"))


def _once(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in pairs:
        if known.setdefault(key, value) != value:
            raise Failure(WRONG_CONFIG, f"{where}{key} is given twice", "give each once")
    return known


def _result(store: Store, call: Call, name: str) -> dict[str, Any]:
    network, row = store.require_network(call.network), store.service(name)
    link, mac, addresses = plugin.endpoint(store, name, network)
    assert row is not None
    bridge_mac = names.mac("", network.bridge, names.alias(store.state_id()))
    interfaces: list[dict[str, Any]] = [
        {"name": network.bridge, "mac": bridge_mac},
        {"name": names.veth(name, call.network, row.generation)},
        {"name": link.interface, "mac": mac, "sandbox": call.netns},
    ]
    if call.version in _SINCE_1_1:
        for interface in interfaces:
            interface["mtu"] = network.mtu
    ips = [
        {"address": address, "gateway": subnet.gateway, "interface": 2}
        | ({"version": str(subnet.family)} if call.version < "1" else {})
        for subnet, address in addresses
    ]
    return {
        "cniVersion": call.version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": [
            {"dst": "0.0.0.0/0" if subnet.family == 4 else "::/0", "gw": subnet.gateway}
            for subnet in network.subnets
            if link.routes
        ],
        "dns": call.config.get("dns", {}),
    }


# --- DEL, GC, CHECK, STATUS -----------------------------------------------------------------------


def _delete(call: Call) -> None:
    machine = plugin.machine()
    for attached in machine.store.attachments.all(OWNER, call.container):
        plugin.take_off(machine, attached, lambda link: link.interface == call.interface)
    if "kubernetes" in call.config:
        from niso.runtime import units

        units.wake_agent(units.KUBERNETES)


def _gc(call: Call) -> None:
    """Remove the interfaces on the call's network that the engine does not list as valid."""
    valid = call.config.get("cni.dev/valid-attachments", call.config.get("cni.dev/attachments"))
    if not isinstance(valid, list) or not all(isinstance(attachment, dict) for attachment in valid):
        raise Failure(WRONG_CONFIG, "cni.dev/valid-attachments is missing")
    known = {(attachment.get("containerID"), attachment.get("ifname")) for attachment in valid}
    if not all(isinstance(word, str) and word for pair in known for word in pair):
        # with keys in another spelling, attachments that are in use would be detached
        raise Failure(WRONG_CONFIG, "cni.dev/valid-attachments: containerID or ifname is missing")
    machine = plugin.machine()
    for attached in machine.store.attachments.all(OWNER):

        def goes(link: AttachedLink, id: str = attached.id) -> bool:
            return link.network == call.network and (id, link.interface) not in known

        plugin.take_off(machine, attached, goes)


def _check(call: Call) -> None:
    from niso.look import check

    if call.config.get(_KEY) is None:
        hint = "the runtime passes the result of ADD"
        raise Failure(WRONG_CONFIG, f"{_KEY} is missing, and CHECK needs it", hint)
    machine = plugin.machine()
    store = machine.store
    _require_namespace(machine, call)
    for attached in store.attachments.all(OWNER, call.container):
        links = store.attachments.links(attached.service)
        if any(x.network == call.network and x.interface == call.interface for x in links):
            # the plugin portmap sets this sysctl on the bridge, so it is no damage
            bridges = (names.bridge(link.network) for link in links)
            theirs = [f"net/ipv4/conf/{bridge}/route_localnet" for bridge in bridges]
            found = check.check(machine, attached.service, theirs)
            findings = [finding.text for finding in found]
            lost = addresses(call) - {address for _, address in store.addresses(attached.service)}
            findings += [f"missing: address {address}" for address in sorted(lost)]
            if machine.kernel.cookie_at(call.netns) != attached.cookie:
                findings.append(f"different: {call.netns} is another network namespace")
            if findings:
                raise Failure(_DIFFERENT, findings[0], "\n".join(findings))
            return
    raise Failure(_DIFFERENT, f"{call.container} is not on network {call.network}")


def _status(call: Call) -> None:
    try:
        machine = plugin.machine()
        with libnftables.Nft():
            pass
    except (Error, OSError) as error:
        raise Failure(_NOT_USABLE, f"niso is not usable: {error}") from error
    if "kubernetes" in call.config:
        from niso.engines import pod_agent

        if not pod_agent.agent_runs():
            raise Failure(_NOT_USABLE, _NO_AGENT, _POD_HINT)
    network = machine.store.network(call.network)
    for subnet in network.subnets if network is not None else ():
        whole = prefix(subnet.cidr)
        used = machine.store.used_numbers(call.network, subnet.family)
        if first_free(whole, whole.offset(subnet.gateway), used) is None:
            raise Failure(
                _NOT_USABLE, f"network {call.network} ({subnet.cidr}) has no free address"
            )


_KEY = "prevResult"
_LISTS = ("interfaces", "ips", "routes")
_HINT = "look at the plugins before niso-cni in the list"


def require_free(store: Store, call: Call, same: AttachedRow | None) -> None:
    """Raise Failure if another plugin or an earlier ADD has created the requested interface.

    If niso is twice in the list of plugins, the interface of its first call is no error. ``same``
    is the container's existing attachment, or None.
    """
    own = store.attachments.links(same.service) if same is not None else ()
    is_own = any(link.interface == call.interface for link in own)
    interfaces = _previous(call)["interfaces"] if call.config.get(_KEY) is not None else ()
    is_made = any(x.get("sandbox") and x.get("name") == call.interface for x in interfaces)
    if is_own and not is_made:
        reason = f"CNI_IFNAME: {call.interface} of {call.container} exists already"
        raise Failure(_EXISTS, reason, "call DEL before another ADD")
    if is_made and not is_own:
        raise Failure(
            WRONG_CONFIG,
            f"another plugin of this list has made {call.interface}, and niso makes it itself",
            "remove that plugin from the list, or give it a list and an interface of its own",
        )


def merged(call: Call, own: dict[str, Any]) -> dict[str, Any]:
    """Return ``prevResult`` with niso's result ``own`` added, without duplicates. Raises Failure.
    Both have the form of a CNI result: interfaces, ips, routes and dns.
    """
    before = _previous(call)
    interfaces = list(before["interfaces"])
    places = []
    for interface in own["interfaces"]:
        if interface not in interfaces:
            interfaces.append(interface)
        places.append(interfaces.index(interface))
    ips = [{**ip, "interface": places[ip["interface"]]} for ip in own["ips"]]
    return {
        **before,
        "cniVersion": own["cniVersion"],
        "interfaces": interfaces,
        "ips": [*before["ips"], *(ip for ip in ips if ip not in before["ips"])],
        "routes": [*before["routes"], *(r for r in own["routes"] if r not in before["routes"])],
        "dns": own["dns"] or before.get("dns", {}),
    }


def addresses(call: Call) -> set[str]:
    """Return the addresses, without prefix lengths, that the container's interface has in
    ``prevResult``. Without ``prevResult``, returns an empty set. Raises Failure.
    """
    if call.config.get(_KEY) is None:
        return set()
    previous = _previous(call)
    of_container = [
        number
        for number, each in enumerate(previous["interfaces"])
        if each.get("sandbox") and each.get("name") == call.interface
    ]
    return {
        str(ip.get("address", "")).partition("/")[0]
        for ip in previous["ips"]
        if ip.get("interface") in of_container
    }


def _previous(call: Call) -> dict[str, Any]:
    """Return ``prevResult``, in which missing or null lists are []. Raises Failure."""
    given = call.config[_KEY]
    if not isinstance(given, dict):
        raise Failure(WRONG_CONFIG, f"{_KEY} is not an object", _HINT)
    previous = {**given, **{key: given.get(key) or [] for key in _LISTS}}
    for key in _LISTS:
        value = previous[key]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise Failure(WRONG_CONFIG, f"{_KEY}.{key} is not a list of objects", _HINT)
    return previous


# --- Kubernetes pods ------------------------------------------------------------------------------

_TRY_AGAIN = 11
_WAIT_S, _LONGEST_S = 10, 120
_NO_AGENT = "niso kubernetes does not run, so the network policies of pods are not known"
_POD_HINT = "systemctl status niso_kubernetes"


def require(call: Call, same: AttachedRow | None) -> None:
    """Raise Failure if a pod has no name, or if no agent runs that could apply its policy.

    A pod whose policy is applied needs no agent. ``same`` is the pod's present attachment, or None.
    """
    from niso.engines import pod_agent

    _wait_s(call)
    _pod_of(call)
    if not (same is not None and pod_agent.is_applied(same)) and not pod_agent.agent_runs():
        raise Failure(_TRY_AGAIN, _NO_AGENT, _POD_HINT)


def closed(store: Store, call: Call, request: Request, same: AttachedRow | None) -> Request:
    """Return a pod's request with the policy that the agent applied, or else `pod_agent.CLOSED`.
    ``same`` is the pod's present attachment, or None.
    """
    from niso.engines import pod_agent

    if request.aliases:
        raise Failure(WRONG_CONFIG, "aliases: pods of Kubernetes have none", "use a Service")
    pod = _pod_of(call)
    now = attach.current(store, same.service) if same is not None else None
    request = pod_agent.closed(request, pod)
    if now is None or same is None or pod_agent.pod_of(same) != pod:
        return request
    return pod_agent.applied(request, now.policy) if pod_agent.is_applied(same) else request


def wait(machine: Machine, call: Call, service: str) -> None:
    """Wait until the agent has applied the policy of the pod that is attached as ``service``. After
    the timeout of the configuration, detaches the pod and raises Failure.
    """
    from niso.engines import pod_agent

    limit_s = _wait_s(call)
    pod_agent.agent_runs()
    try:
        if not pod_agent.wait(machine.store, service, limit_s):
            raise Failure(
                _TRY_AGAIN,
                f"the network policies of {service} were not applied within {limit_s:g} s",
                _POD_HINT,
            )
    except BaseException:
        attach.detach(machine, service, call.container)
        raise


def _pod_of(call: Call) -> pod_agent.PodId:
    words = ("NAMESPACE", "NAME", "UID")
    namespace, name, uid = (call.args.get(f"K8S_POD_{word}", "") for word in words)
    if not (namespace and name and uid):
        raise Failure(WRONG_VARIABLE, "CNI_ARGS names no pod, and the key kubernetes needs one")
    return namespace, name, uid


def _wait_s(call: Call) -> float:
    given = call.config["kubernetes"]
    value = given.get("wait_policy_s", _WAIT_S)
    if given.keys() - {"wait_policy_s"} or type(value) not in (int, float):
        raise Failure(WRONG_CONFIG, "kubernetes has only the key wait_policy_s, in seconds")
    if not 0 < value <= _LONGEST_S:
        raise Failure(WRONG_CONFIG, f"kubernetes.wait_policy_s: more than 0, up to {_LONGEST_S}")
    return float(value)
