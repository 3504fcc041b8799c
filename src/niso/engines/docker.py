"""Serve Docker's remote network driver ``niso`` on a Unix socket, and carry out its calls.

The protocol is JSON over HTTP (moby, libnetwork/docs/remote.md; seen with Docker 26.1). systemd
passes the socket (sd_listen_fds(3)), or the first argument is its path. With a socket from systemd,
the server exits when idle.

Docker requests an interface before the container has a network namespace. Docker then moves the
interface from the host into the container itself, and does not call the driver again. niso
therefore creates a namespace and attaches it, and then moves the interface from there to the host
for Docker. The attachment refers to its namespace by the path of a symlink. The symlink first leads
to niso's namespace, and then to the path at which Docker will create the container's namespace.
When the interface is in the container, niso completes the attachment.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import re
import socket
import socketserver
import struct
import sys
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler

from niso.base import files, names, paths
from niso.base.errors import Error, InvalidInput, NotFound
from niso.base.locks import Lock
from niso.base.named_tuples import Any
from niso.base.names import network_name
from niso.change import attach, networks
from niso.change.attach import AttachmentNetwork, Request
from niso.engines import plugin
from niso.kernel import netns
from niso.look import check
from niso.plan.records import Policy, PortMapping
from niso.plan.subnets import NetworkRequest
from niso.runtime.machine import Machine
from niso.store.attached_rows import BY_INTERFACE, CALLER, process_key

OWNER = BY_INTERFACE
WAIT_S = 0.05
"""Seconds between two checks whether Docker has moved an interface."""
_LONGEST_WAIT_S = 120.0  # for Docker to start a container; the same as _MOVING_S of `attachments`
_GENERIC = "com.docker.network.generic"
_PORTS = "com.docker.network.portmap"
_INTERNAL = "com.docker.network.internal"
_PREFIX = "niso."
_CALLER = "caller"  # the key that niso adds to each call: the `process_key` of dockerd
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_NAMED = "named"
_OPTIONS = ("mtu", "multicast", "network", _NAMED, *plugin.POLICY_KEYS)

_waiting: dict[str, float] = {}
"""Endpoint id -> the monotonic time when its interface was handed over to Docker."""


def answer_call(call: str, given: dict[str, Any]) -> dict[str, Any]:
    """Handle a request of dockerd and return the answer ({} for an unknown call). Raises Error."""
    carry_out = _CALLS.get(call)
    return (carry_out(given) if carry_out is not None else None) or {}


def say(text: str) -> None:
    """Write a line to the journal."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _say_error(where: str, error: Exception) -> None:
    say(f"{where}{plugin.one_line(error) if isinstance(error, Error) else error}")


def _file(top: str, id: object) -> str:
    text = str(id)
    if not 0 < len(text) <= 64 or not set(text) <= set("0123456789abcdef"):
        raise InvalidInput(f"{text!r} is not an id of Docker")
    return os.path.join(top, "docker", text)


def _remove(path: str) -> None:
    if os.path.lexists(path):
        files.remove(path)


def _network(given: Mapping[str, Any]) -> dict[str, Any]:
    known = plugin.load(_file(paths.state_dir(), given["NetworkID"]))
    if known is None:
        raise NotFound("niso does not know this network", "docker network rm, and create it again")
    return known


def _create_network(given: dict[str, Any]) -> None:
    options = given.get("Options") or {}
    own = plugin.options(options.get(_GENERIC), _OPTIONS, "-o")
    path = _file(paths.state_dir(), given["NetworkID"])
    name = network_name(own.get("network") or f"docker-{os.path.basename(path)[:12]}", "-o network")
    plugin.policies((own, "-o "))
    plugin.flag(own.get(_NAMED, False), f"-o {_NAMED}")
    data = [*(given.get("IPv4Data") or ()), *(given.get("IPv6Data") or ())]
    if any(one.get("AddressSpace") == "null" for one in data):
        raise InvalidInput("--ipam-driver null: Docker must choose addresses", "leave it out")
    request = NetworkRequest(
        name,
        tuple(str(one["Pool"]) for one in data),
        gateways=tuple(str(one["Gateway"]).partition("/")[0] for one in data if one.get("Gateway")),
        internal=bool(options.get(_INTERNAL)),
        mtu=plugin.mtu(own.get("mtu"), "-o mtu"),
        multicast=plugin.flag(own.get("multicast", False), "-o multicast"),
    )
    machine, known = plugin.machine(), plugin.load(path)
    # saved first: Docker repeats a call that a killed driver did not answer
    made = machine.store.network(name) is None or bool(known and known["made"])
    plugin.save(path, {"network": name, "made": made, "options": own})
    try:
        networks.create(machine, request)
    except (Error, OSError):
        if known is None:
            _remove(path)
        else:
            plugin.save(path, known)
        raise


def _delete_network(given: dict[str, Any]) -> None:
    """Delete a network that was created for Docker, unless a service of niso uses the network. An
    error is only logged: otherwise Docker could never remove its own network.
    """
    path = _file(paths.state_dir(), given["NetworkID"])
    try:
        known = plugin.load(path) or {}
        machine = plugin.machine()
        name = str(known.get("network", ""))
        if known.get("made") and machine.store.network(name) is not None:
            networks.remove(machine, [name])
    except (Error, OSError, ValueError) as error:
        _say_error(f"network {os.path.basename(path)[:12]} is left: ", error)
    _remove(path)


def _create_endpoint(given: dict[str, Any]) -> dict[str, Any]:
    own, options = _own_options(given), _network(given)["options"]
    _policy(options, own)
    plugin.mac((given.get("Interface") or {}).get("MacAddress"))
    plugin.save(_file(paths.run_dir(), given["EndpointID"]), {"endpoint": given})
    return {"Interface": {}}


def _own_options(endpoint: Mapping[str, Any]) -> dict[str, str]:
    own = {
        str(key).removeprefix(_PREFIX): value
        for key, value in (endpoint.get("Options") or {}).items()
        if str(key).startswith(_PREFIX)
    }
    return plugin.options(own, plugin.OWN_OPTIONS, "driver-opt", _PREFIX)


def _policy(
    options: Mapping[str, str], own: Mapping[str, str], marked: Mapping[str, str] = {}
) -> Policy:
    given = (options, "-o "), (own, f"driver-opt {_PREFIX}"), (marked, f"label {plugin.LABEL}")
    return plugin.policies(*given)


def _marked(given: Mapping[str, Any], endpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return {KEY: value} from the labels ``niso.KEY`` of the container that Docker's Join is for.

    Docker does not pass labels, and does not answer requests about a container that it is starting.
    niso therefore reads Docker's files: the database of its networks has the container's id, and a
    file of the container has its labels. Raises Error if the container is not found, and any
    container has such labels.
    """
    pid = str(given.get(_CALLER, "")).partition(" ")[0]
    folder = _data_folder(pid)
    if folder is None:
        return {}  # the caller is not a dockerd
    sandbox = os.path.basename(str(given["SandboxKey"]))
    content = files.read(f"{folder}/network/files/local-kv.db") or b""
    pattern = b'"ID":"%s[0-9a-f]*","Cid":"([0-9a-f]{64})"' % re.escape(sandbox.encode())
    ids = {found.decode() for found in re.findall(pattern, content)}
    if len(ids) != 1:
        for path in glob.glob(f"{glob.escape(folder)}/containers/*/config.v2.json"):
            if f'"{plugin.LABEL}'.encode() in (files.read(path) or b""):
                raise Error(
                    f"niso does not find the container of sandbox {sandbox}, and some containers"
                    f" have labels {plugin.LABEL}KEY",
                    f"use driver-opt {_PREFIX}KEY instead of labels",
                )
        return {}
    record = plugin.load(f"{folder}/containers/{ids.pop()}/config.v2.json") or {}
    own, labels = _own_options(endpoint), (record.get("Config") or {}).get("Labels")
    image = functools.partial(_image_labels, folder, record)
    return plugin.labels(labels, image, own, f"driver-opt {_PREFIX}")


def _data_folder(pid: str) -> str | None:
    """Return the data folder of the dockerd with the process id ``pid``, below /proc/PID/root. A
    database in the folder is open in dockerd. Returns None if the process is no dockerd.
    """
    for number in os.listdir(f"/proc/{pid}/fd") if pid.isdigit() else ():
        try:
            path = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue  # dockerd has closed it
        for database in ("/network/files/local-kv.db", "/volumes/metadata.db"):
            if path.endswith(database):
                return f"/proc/{pid}/root{path.removesuffix(database)}"
    return None


def _image_labels(folder: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the labels {key: value} of a container's image, or None if they cannot be read.

    ``folder`` is Docker's data folder, and ``record`` is Docker's JSON about the container. Images
    are in Docker's folder, or in the default folder of a containerd that dockerd or systemd starts.
    """
    image = str(record.get("Image", "")).rpartition(":")[2]
    manifest = str((record.get("ImageManifest") or {}).get("digest", "")).rpartition(":")[2]
    if not (image + manifest).isalnum():
        return None
    paths_of = glob.glob(f"{glob.escape(folder)}/image/*/imagedb/content/sha256/{image}")
    root = "/".join(folder.split("/")[:4])
    for store in (f"{folder}/containerd/daemon", f"{root}/var/lib/containerd"):
        blobs = f"{store}/io.containerd.content.v1.content/blobs/sha256"
        known = (plugin.load(f"{blobs}/{manifest}") if manifest else None) or {}
        digest = str((known.get("config") or {}).get("digest", "")).rpartition(":")[2]
        paths_of += [f"{blobs}/{digest}"] if digest.isalnum() else []
    for path in paths_of:
        known = plugin.load(path) or {}
        if known:
            return dict((known.get("config") or {}).get("Labels") or {})
    return None


def _ports(given: Mapping[str, Any]) -> tuple[PortMapping, ...]:
    ports = []
    for one in (given.get("Options") or {}).get(_PORTS) or ():
        first, last = int(one["HostPort"]), int(one.get("HostPortEnd") or one["HostPort"])
        proto = _PROTOCOLS.get(int(one["Proto"]), "")
        address = str(one.get("HostIP") or "")
        if first != last or (address and not first):
            raise InvalidInput(
                f"port {one['Port']}/{proto}: niso does not choose from several",
                "publish a port of a number, or any: -p 80",
            )
        ports.append(plugin.port(address, first, int(one["Port"]), proto))
    return tuple(dict.fromkeys(ports))


def _join(given: dict[str, Any]) -> dict[str, Any]:
    """Create a namespace for an endpoint, attach it, and move its interface to the host. Returns
    the answer for Docker, with the name of this interface and the gateways.
    """
    network, path = _network(given), _file(paths.run_dir(), given["EndpointID"])
    kept, sandbox = plugin.load(path), str(given["SandboxKey"])
    if kept is None or not sandbox.startswith("/"):
        raise NotFound("niso does not know this endpoint", "docker restart CONTAINER")
    machine, id = plugin.machine(), os.path.basename(path)
    marked = _marked(given, kept["endpoint"])
    request = _request(machine, network, kept["endpoint"], id, marked)
    _forget_ended(machine, request)
    # a detached endpoint may have had the name
    request = _request(machine, network, kept["endpoint"], id, marked)
    interface = f"nix{sha256(id.encode()).hexdigest()[:10]}"
    space = netns.new_namespace()
    try:
        _lead(path, f"/proc/{os.getpid()}/fd/{space}")
        attach.attach(machine, request)
        try:
            netns.hand_over(space, request.networks[0].interface, interface)
            # the symlink to the container's namespace is dangling until then
            _lead(path, sandbox)
            plugin.save(path, kept | {"sandbox": sandbox})
        except BaseException:
            attach.detach(machine, request.name, id)
            raise
    finally:
        os.close(space)
    _waiting[id] = time.monotonic()
    subnets = machine.store.require_network(str(network["network"])).subnets
    gateways = {subnet.family: subnet.gateway for subnet in subnets}
    return {
        "InterfaceName": {"SrcName": interface, "DstPrefix": "eth"},
        "Gateway": gateways.get(4, ""),
        "GatewayIPv6": gateways.get(6, ""),
        "DisableGatewayService": True,
    }


def _forget_ended(machine: Machine, request: Request) -> None:
    """Detach endpoints of containers that exited while dockerd could not call niso, for example
    because dockerd was killed. Docker reuses the addresses and ports of such containers. An
    endpoint whose interface Docker may still be moving is detached only if ``request``, a new
    endpoint, has one of its addresses.
    """
    store = machine.store
    wanted = {ip for entry in request.networks for ip in entry.ips}
    present = store.attachments.all(OWNER)
    ended = check.ended(machine.kernel, present)
    for attached in present:
        row = store.service(attached.service)
        if row is None or attached.id == request.id:
            continue
        is_taken = bool(wanted & {address for _, address in store.addresses(attached.service)})
        is_left = is_taken and not attached.lives(machine.kernel)
        if row.active and attached.service not in ended and not is_left:
            continue
        try:
            attach.detach(machine, attached.service, attached.id)
        except Error as error:
            if is_taken:
                raise
            say(f"endpoint {attached.id[:12]} has ended and is left: {plugin.one_line(error)}")
            continue
        _forget_files(attached.id)


def _forget_files(id: str) -> None:
    _waiting.pop(id, None)
    path = _file(paths.run_dir(), id)
    _remove(f"{path}.netns")
    _remove(path)


def _lead(path: str, target: str) -> None:
    draft = f"{path}.new"
    _remove(draft)
    os.symlink(target, draft)
    os.rename(draft, f"{path}.netns")


def _request(
    machine: Machine,
    network: Mapping[str, Any],
    endpoint: Mapping[str, Any],
    id: str,
    marked: Mapping[str, str],
) -> Request:
    """Build the request to attach an endpoint, without ports. A later call publishes its ports.
    ``marked`` are the options in the container's labels. Raises InvalidInput for a wrong option,
    and for a container without a name on a network that requires names.
    """
    own, options = _own_options(endpoint), network["options"]
    both = own | dict(marked)
    if not both.get("name") and plugin.flag(options.get(_NAMED, False), f"-o {_NAMED}"):
        raise InvalidInput(
            "this network takes only containers with a name for niso",
            "label niso.name=NAME, or driver-opt niso.name=NAME (Compose: from 2.27.1 on)",
        )
    interface = endpoint.get("Interface") or {}
    ips = [str(interface.get(key) or "") for key in ("Address", "AddressIPv6")]
    called = both.get("name") or f"c-{id[:12]}"
    name, engine = str(network["network"]), str(endpoint.get(_CALLER, ""))
    own_name, aliases = plugin.free_name(machine, called, id), plugin.own_aliases(both)
    store, short = machine.store, plugin.label(called)
    row, held = store.service(short), store.attachments.get(short)
    if row is not None and row.active and held is not None and held.id != id:
        # the other endpoint may be of the same container, and not moved into it yet
        own_name = plugin.label(f"{called}_{id}")
        if all(link.network != name for link in store.attachments.links(short)):
            aliases.append(short)
    entry = AttachmentNetwork(
        name,
        "eth0",
        tuple(plugin.address(ip.partition("/")[0]) for ip in ips if ip),
        plugin.mac(interface.get("MacAddress")),
    )
    return Request(
        own_name,
        f"{_file(paths.run_dir(), id)}.netns",
        (entry,),
        aliases=plugin.aliases(aliases, own_name),
        owner=OWNER,
        id=id,
        given=called,
        labels=((CALLER, engine),) if engine else (),
        policies=((name, _policy(options, own, marked)),),
    )


def _set_ports(given: Mapping[str, Any], ports: tuple[PortMapping, ...]) -> None:
    """Set the published ports of an endpoint, even while Docker is moving its interface."""
    machine = plugin.machine()
    for attached in machine.store.attachments.all(OWNER, str(given["EndpointID"])):
        now = attach.current(machine.store, attached.service)
        if now is not None and now.ports != ports:
            attach.attach(machine, now._replace(ports=ports, awaited=True))


def _leave(given: dict[str, Any]) -> None:
    path = _file(paths.run_dir(), given["EndpointID"])
    machine, id = plugin.machine(), os.path.basename(path)
    _waiting.pop(id, None)
    for attached in machine.store.attachments.all(OWNER, id):
        attach.detach(machine, attached.service, id)
    _remove(f"{path}.netns")


def _delete_endpoint(given: dict[str, Any]) -> None:
    """Detach an endpoint, unless the call Leave has done so, and delete its files. Errors are only
    logged, because Docker cannot remove the network until this call has succeeded. The addresses of
    an endpoint that could not be detached stay reserved until `net gc` detaches it.
    """
    id = os.path.basename(_file(paths.run_dir(), given["EndpointID"]))
    try:
        _leave(given)
    except (Error, OSError) as error:
        _say_error(f"endpoint {id[:12]} is left: ", error)
    _forget_files(id)


def resume_pending() -> bool:
    """After a restart of this driver, find the endpoints that `complete_pending` must complete.
    Returns False after an error, so that the caller tries again.
    """
    if not os.path.lexists(paths.database()):
        return True
    try:
        machine = plugin.machine()
        for attached in machine.store.attachments.all(OWNER):
            row = machine.store.service(attached.service)
            if row is not None and row.active and not attached.lives(machine.kernel):
                _waiting[attached.id] = time.monotonic()
        _remove_left_files(machine)
    except (Error, OSError) as error:
        _say_error("", error)
        return False
    return True


def _remove_left_files(machine: Machine) -> None:
    """Remove the files of endpoints that are not attached, if their dockerd has exited. `net gc`
    detaches endpoints, but does not remove their files. A dockerd that is killed between
    CreateEndpoint and Join leaves files without an attachment.
    """
    folder = os.path.join(paths.run_dir(), "docker")
    present = os.listdir(folder) if os.path.isdir(folder) else []
    for id in {name.partition(".")[0] for name in present}:
        try:
            kept = plugin.load(_file(paths.run_dir(), id)) or {}
        except (ValueError, Error):
            continue  # not written by niso
        engine = str((kept.get("endpoint") or {}).get(_CALLER, ""))
        has_ended = engine and process_key(int(engine.partition(" ")[0])) != engine
        if has_ended and not machine.store.attachments.all(OWNER, id):
            _forget_files(id)


def complete_pending() -> bool:
    """Attach the namespace of each container into which Docker has moved niso's interface. Returns
    whether Docker has not moved some interface yet: the caller must then call again.
    """
    for id, since in list(_waiting.items()):
        try:
            if _completed(id) or time.monotonic() - since > _LONGEST_WAIT_S:
                _waiting.pop(id, None)
        except (Error, OSError, *plugin.MALFORMED) as error:
            _waiting.pop(id, None)
            _say_error(f"endpoint {id[:12]}: ", error)
    return bool(_waiting)


def _completed(id: str) -> bool:
    path = f"{_file(paths.run_dir(), id)}.netns"
    if not os.path.exists(path):
        return not os.path.lexists(path)
    machine = plugin.machine()
    store = machine.store
    attached = next(iter(store.attachments.all(OWNER, id)), None)
    row = store.service(attached.service) if attached is not None else None
    if attached is None or row is None:
        return True
    network, address = next(iter(store.addresses(attached.service)), ("", ""))
    host_end = names.veth(attached.service, network, row.generation)
    moved = netns.find(path, host_end, address)
    if moved is None:
        return False
    with Lock(), store.transaction():
        store.attachments.move(attached.service, *moved)
    request = attach.current(store, attached.service)
    if request is not None:
        attach.attach(machine, request)
    os.utime(path, (0, 0), follow_symlinks=False)  # complete: without a process it has ended
    return True


_CALLS: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "Activate": lambda _: {"Implements": ["NetworkDriver"]},
    "GetCapabilities": lambda _: {"Scope": "local", "ConnectivityScope": "local"},
    "CreateNetwork": _create_network,
    "DeleteNetwork": _delete_network,
    "CreateEndpoint": _create_endpoint,
    "DeleteEndpoint": _delete_endpoint,
    "EndpointOperInfo": lambda _: {"Value": {}},
    "Join": _join,
    "Leave": _leave,
    "ProgramExternalConnectivity": lambda given: _set_ports(given, _ports(given)),
    "RevokeExternalConnectivity": lambda given: _set_ports(given, ()),
}


# --- the server -----------------------------------------------------------------------------------

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_IDLE_S = 30.0
_MOST_BYTES = 4 << 20
_TYPE = "application/vnd.docker.plugins.v1.2+json"
_WITHOUT_BODY = ("Activate", "GetCapabilities")


class _Handler(BaseHTTPRequestHandler):
    """An HTTP handler for one connection. The server has one thread, so calls never overlap."""

    timeout = 10  # seconds until a silent client is disconnected
    protocol_version = "HTTP/1.0"
    last_s = 0.0
    """The start of the latest call, in seconds of the monotonic clock."""

    def handle(self) -> None:
        _Handler.last_s = time.monotonic()
        try:
            super().handle()
        except Exception as error:
            say(f"a call failed: {error!r}")

    def do_POST(self) -> None:
        call = self.path.rpartition(".")[2]
        status = 200
        try:
            answer = answer_call(call, self._body() | {_CALLER: self._caller()})
        except (Error, OSError, *plugin.MALFORMED) as error:
            status, answer = 500, {"Err": plugin.one_line(error, call)}
        if "Err" in answer:
            say(f"{call}: {answer['Err']}")
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _caller(self) -> str:
        """Return pid and start of the client's process as `process_key` (SO_PEERCRED, unix(7))."""
        size = struct.calcsize("3i")
        sent = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return process_key(struct.unpack("3i", sent)[0])

    def _body(self) -> dict[str, object]:
        length = int(self.headers.get("Content-Length") or 0)
        if not length and self.path.rpartition(".")[2] not in _WITHOUT_BODY:
            # Docker repeats a call that a killed driver did not answer, but without its content
            raise Error("niso-docker was killed during this call", "try again")
        if length > _MOST_BYTES:
            raise InvalidInput("this call is too long")
        body = json.loads(self.rfile.read(length).decode() or "{}")
        if not isinstance(body, dict):
            raise InvalidInput("this call is not a JSON object")
        return body

    def log_message(self, *_: object) -> None:
        """Do nothing. The base class would log each call."""


def main() -> None:
    """Serve calls of Docker. With a socket from systemd, exit after some time without calls."""
    try:
        listening, is_passed = _listening()
    except (OSError, Error) as error:
        say(f"niso-docker: {error}")
        os._exit(1)
    _Handler.last_s = time.monotonic()
    with socketserver.UnixStreamServer("", _Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = listening
        is_taken_up = False
        while True:
            is_taken_up = is_taken_up or resume_pending()
            is_waiting = complete_pending()
            server.timeout = WAIT_S if is_waiting else _IDLE_S
            server.handle_request()
            is_idle = time.monotonic() - _Handler.last_s >= _IDLE_S
            if is_passed and is_idle and not complete_pending():
                return


def _listening() -> tuple[socket.socket, bool]:
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_FIRST_FD), True
    if len(sys.argv) != 2 or not sys.argv[1].startswith("/"):
        raise InvalidInput("give the path of a socket, /run/docker/plugins/niso.sock")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # for root only: whoever can write to it controls niso
    try:
        if os.path.lexists(sys.argv[1]):
            os.unlink(sys.argv[1])
        listening.bind(sys.argv[1])
    finally:
        os.umask(before)
    listening.listen()
    return listening, False
