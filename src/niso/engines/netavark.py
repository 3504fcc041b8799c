"""Run as a plugin of netavark, Podman's network program, and resolve names with aardvark-dns.

The calls are ``info``, ``create``, ``setup NETNS`` and ``teardown NETNS``, with JSON on stdin and
stdout (github.com/containers/netavark, plugin-API.md; seen with Podman 5.4).

If aardvark-dns is installed, niso runs an instance of it, so that containers can resolve each
other's names. The instance that netavark runs does not serve the networks of plugins. aardvark-dns
reads one file for each network: a line with the network's addresses and name servers, then ``ID
IPV4S IPV6S NAMES SERVERS`` for each container. At SIGHUP it reads the files again, and exits if
there are none. Queries for other names are forwarded to the name servers of the container, or else
of the network, or else of the host. Such queries are not forwarded if the client's address is only
in files of internal networks, whose file names end in ``%int``.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Mapping, Sequence

import niso
from niso.base import files, paths
from niso.base.errors import Conflict, Error, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, Any
from niso.base.names import MAC_PREFIX, bridge, family_of, ip_network, network_name, prefix
from niso.base.native import from_json, lazy, signal
from niso.change import attach
from niso.change.attach import AttachmentNetwork, Request
from niso.engines import plugin
from niso.kernel import netns
from niso.plan.records import NetworkRecord, PortMapping
from niso.runtime.machine import Machine
from niso.store.attached_rows import AttachedRow, requested_settings
from niso.store.sqlite import sqlite3
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change import networks
    from niso.plan import subnets as plan_subnets
else:  # only networks need them, and not each container
    networks = lazy("niso.change.networks")
    plan_subnets = lazy("niso.plan.subnets")

OWNER = "podman"
API_VERSION = "1.0.0"
_CONFIGURATIONS = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")
_YOUNG_S = 60
_OPTIONS = ("mtu", "isolate", "dns", "multicast", *plugin.POLICY_KEYS)
_ROOTLESS = "_CONTAINERS_ROOTLESS_UID"
"""The environment variable that Podman sets in the user namespace of a rootless user."""


def main() -> None:
    """Carry out one call of netavark, print the answer, and end the process."""
    plugin.run(lambda: _answer(sys.argv[1:]), lambda error: {"error": plugin.one_line(error)})


def _answer(words: list[str]) -> dict[str, Any] | None:
    command, *arguments = words or [""]
    if command == "info":
        return {"version": niso.__version__, "api_version": API_VERSION}
    if command != "create" and (command not in ("setup", "teardown") or len(arguments) != 1):
        raise InvalidInput(
            "this is a plugin for netavark", "create, setup NETNS, teardown NETNS or info"
        )
    if os.environ.get(_ROOTLESS):
        raise Error("niso has no rootless networks", "run podman as root, or use -d bridge")
    given = plugin.read_object()
    machine = plugin.machine()
    if command == "create":
        return _create(machine, given)
    if command == "setup":
        return _setup(machine, arguments[0], given)
    _teardown(machine, given)
    return None


# --- create ---------------------------------------------------------------------------------------


def _create(machine: Machine, given: dict[str, Any]) -> dict[str, Any]:
    name = _network_name(given)
    if given.get("network_interface") not in (None, "", bridge(name)):
        raise InvalidInput(
            f"--interface-name: the bridge of this network is {bridge(name)}", "leave it out"
        )
    if given.get("network_dns_servers"):  # Podman would refuse the answer
        hint = f"create it without, then podman network update --dns-add ADDRESS {given['name']}"
        raise InvalidInput("--dns: a network of niso cannot be created with it", hint)
    lock = _locked()
    try:
        _drop(machine, name)
        network = _ensured(machine, given)
    finally:
        os.close(lock)
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


def _ensured(machine: Machine, given: Mapping[str, Any]) -> NetworkRecord:
    name = _network_name(given)
    options = plugin.options(given.get("options"), _OPTIONS, "--opt")
    if options.get("dns", "aardvark") not in ("aardvark", "none"):
        raise InvalidInput(f"--opt dns={options['dns']}: not a name server", "aardvark or none")
    plugin.policies(
        (options, f"network-{name}.")
    )  # refuse a wrong entry before the first container
    _servers(given.get("network_dns_servers"))
    known = machine.store.network(name)
    subnets = given.get("subnets") or []
    multicast = plugin.flag(options.get("multicast", False), "--opt multicast")
    is_like = known is not None and known.multicast == multicast
    if known is not None and is_like and _is_as_described(known, given, options.get("mtu")):
        return known

    for subnet in subnets:
        if subnet.get("lease_range"):
            raise InvalidInput(
                "--ip-range: niso leases any address of a subnet",
                "choose a smaller --subnet; static addresses are never leased to others",
            )
    if given.get("routes"):
        raise InvalidInput("--route: not supported by networks of niso", "leave it out")
    mtu = plugin.mtu(options.get("mtu"), "--opt mtu")
    try:
        prefixes = tuple(str(ip_network(str(subnet["subnet"]))) for subnet in subnets)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"network {name}: {error}") from error
    request = plan_subnets.NetworkRequest(
        name,
        prefixes,
        ipv6=bool(given.get("ipv6_enabled")) and not any(":" in prefix for prefix in prefixes),
        gateways=tuple(str(s["gateway"]) for s in subnets if s.get("gateway")),
        internal=bool(given.get("internal")),
        mtu=mtu,
        multicast=multicast,
    )
    if request.ipv6 and request.gateways:
        raise InvalidInput("--ipv6 with --gateway: name the IPv6 subnet too", "--subnet PREFIX")
    if networks.create(machine, request) is not None:
        _note(machine, name, str(given.get("name", "")))
    return machine.store.require_network(name)


def _is_as_described(known: NetworkRecord, given: Mapping[str, Any], mtu: str | None) -> bool:
    have = sorted((subnet.cidr, subnet.gateway) for subnet in known.subnets)
    want = [(str(s.get("subnet")), str(s.get("gateway"))) for s in given.get("subnets") or ()]
    return (
        have == sorted(want)
        and known.internal == bool(given.get("internal"))
        and mtu in (None, str(known.mtu))
        and not given.get("routes")
    )


def _note(machine: Machine, network: str, called: str) -> None:
    """Record in a file that niso created ``network`` for the Podman network ``called``."""
    file = os.path.join(_network_folder(), f"{called}.json")
    note = {"file": file, "made_at": machine.store.network_made_at(network)}
    plugin.save(os.path.join(_notes(), network), note)


def _notes() -> str:
    return os.path.join(paths.state_dir(), "podman")


def _locked() -> int:
    """Lock the files that `_note` writes, until the caller closes the returned descriptor. Without
    the lock, niso could remove a network that Podman is creating again under the same name.
    """
    os.makedirs(_notes(), mode=0o700, exist_ok=True)
    lock = os.open(_notes(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def drop_networks(machine: Machine) -> None:
    """Remove networks that Podman no longer has, unless a service is on them. Raises OSError.
    Podman does not call its plugin when it removes a network, but deletes the network's file.
    """
    if not os.path.isdir(_notes()):
        return
    lock = _locked()
    try:
        _drop(machine, "")
    finally:
        os.close(lock)


def _drop(machine: Machine, wanted: str) -> None:
    """Remove networks as `drop_networks` does, for a caller that has the lock of `_locked`. Podman
    writes the file of a new network after its call to niso. A new network without a file is
    therefore not removed, except the network ``wanted``, which Podman is about to create again.
    """
    store = machine.store
    for name in sorted(os.listdir(_notes())):
        if "." in name:  # left by a process that was killed while it wrote
            continue
        path = os.path.join(_notes(), name)
        try:
            note = plugin.load(path) or {}
        except ValueError:
            note = {}  # the file was damaged
        if "file" not in note or store.network_made_at(name) != note.get("made_at"):
            files.remove(path)  # the name now belongs to another network
            continue
        if os.path.lexists(str(note["file"])):
            if not note.get("seen"):
                plugin.save(path, note | {"seen": True})
            continue
        is_new = not note.get("seen") and time.time() - os.stat(path).st_mtime < _YOUNG_S
        if is_new and name != wanted:
            continue
        if store.members(name) or store.restored_by_undo(name):
            continue
        try:
            networks.remove(machine, [name])
        except Error as error:
            machine.caution(f"network {name!r}, which Podman has removed, is left: {error}")
            continue
        files.remove(path)
        machine.caution(f"network {name!r} is removed, as Podman has removed it")


def _network_folder() -> str:
    with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
        words = os.fsdecode(file.read()).split("\0")
    option = "--network-config-dir"
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == option or word.startswith(f"{option}="):
            return word.partition("=")[2] or after
    own = os.environ.get("CONTAINERS_CONF")
    read = [own] if own else list(_CONFIGURATIONS)
    if not own:
        parts = f"{_CONFIGURATIONS[-1]}.d"
        names = os.listdir(parts) if os.path.isdir(parts) else ()
        read += sorted(f"{parts}/{name}" for name in names if name.endswith(".conf"))
    folder = "/etc/containers/networks"
    for path in (*read, os.environ.get("CONTAINERS_CONF_OVERRIDE", "")):
        content = files.read(path) if path else None
        lines = content.splitlines() if content is not None else ()
        if any(b"network_config_dir" in line and line.strip()[:1] != b"#" for line in lines):
            import tomllib  # 5 ms, for a key that few set

            network = tomllib.loads((content or b"").decode()).get("network", {})
            folder = str(network.get("network_config_dir") or folder)
    return folder


def _network_name(given: Mapping[str, Any]) -> str:
    """Return niso's name for a Podman network: the same name if it is valid, or a similar name.
    ``given`` is Podman's configuration of the network. Raises InvalidInput for a name with a
    special meaning in niso, such as ``none``.
    """

    name = str(given.get("name", ""))
    try:
        return network_name(name, "network name")
    except InvalidInput:
        similar = plugin.label(name)
        if similar == name or not name:
            raise
        return similar


# --- setup, teardown ------------------------------------------------------------------------------


def _setup(machine: Machine, space: str, given: Mapping[str, Any]) -> dict[str, Any]:
    lock = _locked()
    try:
        _drop(machine, "")
        network = _ensured(machine, given["network"])
    finally:
        os.close(lock)
    mine = given.get("network_options") or {}
    container, called = str(given["container_id"]), str(given["container_name"])
    options = plugin.options(given["network"].get("options"), _OPTIONS, "--opt")
    where = f"--network {network.name}:"
    own = plugin.options(mine.get("options"), plugin.OWN_OPTIONS, where)
    database = _database()
    found = recorded(database, container)
    if database and found == {}:  # the container may have labels with a policy
        raise Error(f"{database}: the record of container {called!r} cannot be read", "try again")
    record = found or {}
    marked = plugin.labels(
        record.get("labels"), lambda: _image_labels(database, record), own, where
    )
    both = own | marked
    _let_go(machine, container, called)
    store = machine.store
    # netavark calls once for each network: a later call extends the attachment of the first
    same, name = plugin.find(machine, OWNER, container, space, both.get("name") or called, True)
    entry = AttachmentNetwork(
        network.name,
        attach.interface_name(str(mine.get("interface_name") or "eth0")),
        tuple(map(plugin.address, mine.get("static_ips") or ())),
        _mac(mine, (record.get("newNetworks") or {}).get(given["network"]["name"])),
    )
    servers = _servers(record.get("dnsServer"))
    chosen = plugin.own_aliases(both)
    labels = {DATABASE: database, SERVERS: " ".join(servers)}
    request = Request(
        name,
        space,
        (entry,),
        tuple(map(_port, given.get("port_mappings") or ())),
        plugin.aliases((called, *(mine.get("aliases") or ()), *chosen), name),
        owner=OWNER,
        id=container,
        given=called,
        labels=tuple((key, value) for key, value in labels.items() if value),
        policies=(
            (
                network.name,
                plugin.policies(
                    (options, f"network-{network.name}."), (own, "option."), (marked, "label.")
                ),
            ),
        ),
    )
    if same is not None:
        request = plugin.joined(store, request)
        # a fixed order, because netavark calls for the networks in any order
        request = request._replace(networks=tuple(sorted(request.networks)))
    attach.attach(machine, request)
    has_names = options.get("dns") != "none"
    resolvers = _servers(given["network"].get("network_dns_servers"))
    if has_names:
        update(machine, network.name, OWNER, resolvers)
        if _program() is not None:
            resolvers = [subnet.gateway for subnet in network.subnets]
    link, mac, addresses = plugin.endpoint(store, name, network)
    return {
        "dns_search_domains": [DOMAIN] if has_names and _program() is not None else [],
        "dns_server_ips": resolvers,
        "interfaces": {
            link.interface: {
                "mac_address": mac,
                "subnets": [
                    {"ipnet": address, "gateway": subnet.gateway} for subnet, address in addresses
                ],
            }
        },
    }


def _mac(mine: Mapping[str, Any], chosen: object) -> str:
    """Return the MAC address that a user has chosen for a container, or "" for none.

    ``mine`` are the network's options in Podman's call, and ``chosen`` those in Podman's database.
    A MAC address that is only in ``mine`` is ignored: niso may have derived the address from a
    former name of the container.
    """
    mac = plugin.mac(mine.get("static_mac"))
    is_derived = isinstance(chosen, dict) and not chosen.get("static_mac")
    return "" if is_derived and mac.startswith(MAC_PREFIX) else mac


def _servers(given: object) -> list[str]:
    texts = given if isinstance(given, list) else []
    return [plugin.address(text) for text in texts if text != "none"]  # --dns none


def _port(given: Mapping[str, Any]) -> PortMapping:
    try:
        host, inner = int(given["host_port"]), int(given["container_port"])
        count = int(given.get("range") or 1)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"a port mapping is not valid: {error}") from error
    proto = str(given.get("protocol") or "tcp")
    return plugin.port(str(given.get("host_ip") or ""), host, inner, proto, count)


def _teardown(machine: Machine, given: Mapping[str, Any]) -> None:
    try:
        network = _network_name(given["network"])
    except InvalidInput:
        return  # no container can be on it
    for attached in machine.store.attachments.all(OWNER, str(given["container_id"])):
        plugin.take_off(machine, attached, lambda link: link.network == network)
    if machine.store.network(network) is not None:
        update(machine, network, OWNER, _servers(given["network"].get("network_dns_servers")))
    drop_networks(machine)


# --- what Podman has on record --------------------------------------------------------------------

DATABASE, SERVERS = "podman_database", "podman_dns"
"""Labels of an attachment: the path of Podman's database, and the name servers of --dns."""
_PATIENCE_S = 20.0


def _database() -> str:
    """Return the path of the database that the calling podman has open, or "" if it has none open.
    The database has options of containers that netavark does not pass to its plugins.
    """
    try:
        with open(f"/proc/{os.getppid()}/stat", encoding="utf-8", errors="replace") as file:
            podman = int(file.read().rpartition(")")[2].split()[1])
        folder = f"/proc/{podman}/fd"
        paths_open = [os.readlink(f"{folder}/{number}") for number in os.listdir(folder)]
    except OSError:
        return ""  # netavark was called by another program
    return next((path for path in paths_open if path.endswith("/db.sql")), "")


def recorded(database: str, container: str) -> dict[str, Any] | None:
    """Return a container's configuration in Podman's database, or None if it does not exist.

    Returns {} if the configuration cannot be read. ``container`` is the container's id. Raises
    Error if the database stays locked.
    """
    if not database:
        return {}
    if not os.path.exists(database):
        return None
    uri = database.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    query = "SELECT JSON FROM ContainerConfig WHERE ID=?"
    try:
        db = sqlite3.connect(f"file:{uri}?mode=ro", timeout=_PATIENCE_S, uri=True)
        try:
            row = db.execute(query, (container,)).fetchone()
        finally:
            db.close()
        record = from_json(row[0]) if row is not None else None
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise Error(f"{database}: {error}", "try again") from error
        return {}
    except (sqlite3.DatabaseError, ValueError):
        return {}
    return record if record is None or isinstance(record, dict) else {}


def _image_labels(database: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the labels {key: value} of a container's image, or None if they cannot be read.
    ``record`` is the result of `recorded`. Podman's image storage is next to ``database``. A file
    ``=KEY``, with its key in base64, has the image's configuration (containers/storage, images.go).
    """
    import base64
    import glob

    id = str(record.get("rootfsImageID") or "")
    if not id:
        return {} if record.get("rootfs") else None
    file = base64.b64encode(f"sha256:{id}".encode()).decode()
    for path in glob.glob(f"{glob.escape(os.path.dirname(database))}/*-images/{id}/={file}"):
        known = plugin.load(path) or {}
        return dict((known.get("config") or {}).get("Labels") or {})
    return None


def _let_go(machine: Machine, container: str, called: str) -> None:
    """Detach a deleted container named ``called``, so that a new container of this name can be
    attached. ``container`` is the id of the new container. Raises Conflict if Podman still has the
    former container, under another name.
    """
    for attached in machine.store.attachments.all(OWNER):
        if attached.given != called or attached.id == container:
            continue
        if _is_left(attached):
            _detach(machine, attached)
            continue
        now = (recorded(_database_of(attached), attached.id) or {}).get("name", called)
        if now != called:
            raise Conflict(
                f"Podman has renamed container {called!r} to {now!r}, and niso has not",
                f"podman network reload {now}",
            )


def collect(machine: Machine) -> list[str]:
    """Detach the containers that Podman no longer has, and return the names of their attachments.

    A container stays attached while a process runs in its namespace. An existing file of the
    namespace is not enough, because the file stays if Podman's storage was deleted.
    """
    done = []
    for attached in machine.store.attachments.all(OWNER):
        if _is_left(attached):
            _detach(machine, attached)
            done.append(attached.service)
    return done


def _detach(machine: Machine, attached: AttachedRow) -> None:
    on = [link.network for link in machine.store.attachments.links(attached.service)]
    attach.detach(machine, attached.service, attached.id)
    for network in on:
        update(machine, network, OWNER)


def _database_of(attached: AttachedRow) -> str:
    return str(requested_settings(attached)["labels"].get(DATABASE, ""))


def _is_left(attached: AttachedRow) -> bool:
    """Return whether Podman has deleted a container and no process runs in its namespace."""
    if recorded(_database_of(attached), attached.id) is not None:
        return False
    is_there = os.path.exists(attached.netns)
    return not is_there or attached.netns in netns.emptied([attached.netns])


# --- names by aardvark-dns ------------------------------------------------------------------------

PROGRAMS = tuple(
    f"{folder}/podman/aardvark-dns"
    for folder in ("/usr/local/libexec", "/usr/local/lib", "/usr/libexec", "/usr/lib")
)
DOMAIN = "dns.podman"
_PID_FILE = "aardvark.pid"
_INTERNAL = "%int"
_SILENCED = 1022
"""How many addresses of an internal network are in its file, so that queries are not forwarded.

Services of niso are on the network too, and aardvark-dns forwards for addresses in no file.
"""
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")


def update(
    machine: Machine, network: str, owner: str, servers: Sequence[str] | None = None
) -> None:
    """Write a network's file for aardvark-dns, and make aardvark-dns read its files again.

    ``owner`` is the engine whose containers are listed. Queries for other names are forwarded to
    the name servers ``servers``, or to the host's if the list is empty. If ``servers`` is None, the
    name servers in the file do not change. Raises OSError.
    """
    program = _program()
    if program is None:
        return
    folder = os.path.join(paths.run_dir(), "dns")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # under the lock, the last writer has also read the store last
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = _text(machine.store, network, owner)
        servers = _present(folder, network) if servers is None else servers
        if servers:
            head, _, rest = text.partition("\n")
            text = f"{head} {','.join(servers)}\n{rest}" if text else ""
        known = machine.store.network(network)
        ends = (_INTERNAL, "") if known is not None and known.internal else ("", _INTERNAL)
        path, other = (os.path.join(folder, f"{network}{end}") for end in ends)
        if os.path.exists(other):
            os.unlink(other)
        if text:
            draft = os.path.join(folder, ".new")
            with open(draft, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(draft, path)
        elif os.path.exists(path):
            os.unlink(path)
        _notify(program, folder, bool(text))
    finally:
        os.close(lock)


def _present(folder: str, network: str) -> list[str]:
    content = files.read(f"{folder}/{network}") or files.read(f"{folder}/{network}{_INTERNAL}")
    head = (content or b"").decode().partition("\n")[0].split()
    return head[1].split(",") if len(head) > 1 else []


def _program() -> str | None:
    return next((path for path in PROGRAMS if os.access(path, os.X_OK)), None)


def _text(store: Store, network: str, owner: str) -> str:
    known = store.network(network)
    lines = []
    for attached in store.attachments.all(owner):
        own = [address for on, address in store.addresses(attached.service) if on == network]
        names = {attached.given.lower(), *store.names(attached.service)}
        shown = ",".join(sorted(name for name in names if name and _NAME.issuperset(name)))
        if own and shown:
            families = (",".join(a for a in own if family_of(a) == n) for n in (4, 6))
            servers = requested_settings(attached)["labels"].get(SERVERS, "").replace(" ", ",")
            line = f"{attached.service} {' '.join(families)} {shown} {servers}"
            lines.append(f"{line.rstrip()}\n")
    if known is None or not lines:
        return ""
    if known.internal:
        families = (",".join(_silenced(store, known, family)) for family in (4, 6))
        lines.append(f"- {' '.join(families)} -\n")
    return "".join([",".join(subnet.gateway for subnet in known.subnets) + "\n", *lines])


def _silenced(store: Store, network: NetworkRecord, family: int) -> list[str]:
    """Return a sorted list of addresses on an internal network: its leases, and the first of each
    subnet of the address family. aardvark-dns must not forward DNS queries from these addresses.
    """
    addresses = {address for address, _, _ in store.leases(network.name, family)}
    for subnet in network.subnets:
        if subnet.family == family:
            whole = prefix(subnet.cidr)
            count = min(_SILENCED, whole.num_addresses)
            addresses |= {whole.address_at(number) for number in range(count)} - {subnet.gateway}
    return sorted(addresses)


def _notify(program: str, folder: str, needed: bool) -> None:
    try:
        with open(os.path.join(folder, _PID_FILE), encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            if file.read().strip() == "aardvark-dns":
                os.kill(pid, signal.SIGHUP)
                return
    except (OSError, ValueError):
        pass  # no server is running
    if not needed:
        return
    # in a scope of its own: the caller may be in the cgroup of a unit that ends
    scope = ("/usr/bin/systemd-run", "-q", "--scope")
    by_systemd = os.path.isdir("/run/systemd/system") and os.access(scope[0], os.X_OK)
    argv = [*(scope if by_systemd else ()), program, "--config", folder, "-p", "53", "run"]
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    # it daemonises: its parent exits when it listens
    os.waitpid(os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=null), 0)
