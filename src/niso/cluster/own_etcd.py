"""Run this host's etcd member, and list and change the members of the cluster's etcd.

If Debian's package has created a user for etcd, etcd runs as this user, otherwise as root. etcd
has its own copies of the certificates, because this user cannot read niso's.

A new member starts as a learner: it does not vote until it has all data. etcd refuses a change of
its members unless all of them have been connected for 5 s. niso therefore repeats such a request
for a while (etcd.io/docs/v3.5/op-guide/runtime-configuration).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from niso.base import files, paths
from niso.base.errors import Error, NotFound
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import bracketed
from niso.cluster import invitation
from niso.cluster.config import CLIENT_PORT, PEER_PORT, Config
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.etcd import Etcd, Reach

if TYPE_CHECKING:
    from typing import NoReturn

USER = "etcd"
_START_S, _STOP_S, _PAUSE_S = 60.0, 10.0, 0.05
_REFUSED = "refused.pem"
_COPIED = (invitation.AUTHORITY, invitation.CERTIFICATE, invitation.KEY)


def folder() -> str:
    """Return the path of the folder of this host's etcd member, such as /var/lib/niso-etcd."""
    return f"{paths.state_dir()}-etcd"


def data() -> str:
    return os.path.join(folder(), "data")


def log() -> str:
    """Return the path of etcd's log file, which is used only without systemd."""
    return os.path.join(folder(), "log")


def client_place(address: str) -> str:
    """Return the endpoint HOST:PORT at which the etcd member of a host serves clients."""
    return f"{bracketed(address)}:{CLIENT_PORT}"


def peer_url(address: str) -> str:
    """Return the URL at which the etcd member of a host serves the other members."""
    return f"https://{bracketed(address)}:{PEER_PORT}"


def program() -> str:
    """Return the path of the etcd program. Raises Error if it is not installed."""
    path = shutil.which("etcd")
    if path is None:
        raise Error(
            "etcd is not installed",
            "apt install etcd-server, after systemctl mask etcd.service: niso runs its own",
        )
    return path


def words(config: Config) -> list[str]:
    """Return etcd's command-line options. Only the first start uses the options initial-*."""
    assert config.member is not None
    tls = os.path.join(folder(), "tls")
    authority, certificate, key = (os.path.join(tls, name) for name in _COPIED)
    client, peer = f"https://{client_place(config.address)}", peer_url(config.address)
    options = {
        "name": config.host,
        "data-dir": data(),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": ",".join(config.member.initial),
        "initial-cluster-state": "existing" if config.member.joins else "new",
        "client-cert-auth": "true",
        "trusted-ca-file": authority,
        "cert-file": certificate,
        "key-file": key,
        "peer-client-cert-auth": "true",
        "peer-trusted-ca-file": authority,
        "peer-cert-file": certificate,
        "peer-key-file": key,
        # etcd reads these files again at each new connection
        "client-crl-file": os.path.join(tls, _REFUSED),
        "peer-crl-file": os.path.join(tls, _REFUSED),
        "strict-reconfig-check": "true",
        "auto-compaction-retention": "1h",
        "quota-backend-bytes": str(2 << 30),
        "experimental-watch-progress-notify-interval": "5s",
        "log-level": "warn",
    }
    return [f"--{name}={value}" for name, value in options.items()]


def prepare() -> pwd.struct_passwd | None:
    """Create etcd's folders and copies of certificates. Return etcd's user, or None for root."""
    user, owner = _user()
    os.makedirs(folder(), 0o755, exist_ok=True)
    os.makedirs(data(), 0o700, exist_ok=True)
    if os.stat(data()).st_uid != owner[0]:  # the package was installed after the data were created
        for at, folders, names in os.walk(data()):
            for name in (*folders, *names):
                os.chown(os.path.join(at, name), *owner, follow_symlinks=False)
        os.chown(data(), *owner)
    tls = os.path.join(folder(), "tls")
    os.makedirs(tls, 0o755, exist_ok=True)
    for name in _COPIED:
        with open(os.path.join(paths.cluster_dir(), name), "rb") as file:
            files.replace(os.path.join(tls, name), file.read(), 0o400, owner)
    _write_refused((files.read(_refused_file()) or b"").decode().split())
    return user


def refuse(serials: Sequence[str]) -> list[str]:
    """Make this host's etcd member refuse more certificates. Return all refused serial numbers.

    Earlier serial numbers stay refused, because etcd's own list may have been restored from an old
    backup.
    """
    before = (files.read(_refused_file()) or b"").decode().split()
    every = sorted({*before, *serials})
    if every != before:
        _write_refused(every)
        files.replace(_refused_file(), "".join(f"{serial}\n" for serial in every).encode(), 0o600)
    return every


def _write_refused(serials: Sequence[str]) -> None:
    made = invitation.refusal(paths.cluster_dir(), serials)
    files.replace(os.path.join(folder(), "tls", _REFUSED), made, 0o400, _user()[1])


def _refused_file() -> str:
    return os.path.join(paths.cluster_dir(), "refused")


def _user() -> tuple[pwd.struct_passwd | None, tuple[int, int]]:
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return None, (0, 0)
    return user, (user.pw_uid, user.pw_gid)


def execute(config: Config, *more: str) -> NoReturn:
    """Replace this process with etcd. Raises Error if etcd or this host's member is missing."""
    if config.member is None:
        raise Error("this host runs no member of etcd", "niso cluster status lists the members")
    etcd = program()
    user = prepare()
    os.makedirs(paths.run_dir(), 0o755, exist_ok=True)
    files.replace(_pid_file(), f"{os.getpid()}\n".encode(), 0o600)
    if user is not None:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    kept = ("PATH", "NOTIFY_SOCKET", "GOMAXPROCS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    os.execve(etcd, [etcd, *words(config), *more], environment)


def start(config: Config, *more: str) -> None:
    """Start etcd in the background with additional options. etcd outlives this process."""
    prepare()
    output = os.open(log(), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            execute(config, *more)
        except (Error, OSError) as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(1)
    os.close(output)
    until = time.monotonic() + _START_S
    while pid() is None and time.monotonic() < until and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(_PAUSE_S)


def wait(config: Config) -> None:
    """Wait until this host's etcd member answers. Raises Error with the last line of its log."""

    until = time.monotonic() + _START_S
    while state(config.access(), client_place(config.address)) is None:
        if time.monotonic() >= until or (os.path.exists(log()) and pid() is None):
            raise Error(f"etcd does not start{_last_words()}", "it needs ports 2379 and 2380 (TCP)")
        time.sleep(_PAUSE_S)


def stop() -> None:
    """Stop this host's etcd if it runs without systemd."""
    number = pid()
    for sent in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _STOP_S
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, sent)
        while number is not None and pid() == number and time.monotonic() < until:
            time.sleep(_PAUSE_S)
        number = pid()


def be_alone(config: Config) -> None:
    """Make this host's member, which must not be running, the only member of etcd. Raises Error."""
    start(config, "--force-new-cluster")
    try:
        wait(config)
    finally:
        stop()


def forget() -> None:
    """Delete etcd's folder with its data. The member must not be running."""
    shutil.rmtree(folder(), ignore_errors=True)


def pid() -> int | None:
    """Return the pid of this host's etcd, or None if it is not running."""
    try:
        number = int((files.read(_pid_file()) or b"").decode())
        with open(f"/proc/{number}/cmdline", "rb") as file:
            given = file.read().split(b"\0")
    except (OSError, ValueError):
        return None
    return number if f"--data-dir={data()}".encode() in given else None


def _pid_file() -> str:
    return os.path.join(paths.run_dir(), "etcd.pid")


def _last_words() -> str:
    try:
        with open(log(), encoding="utf-8", errors="replace") as file:
            last = file.read()[-10_000:].strip().splitlines()[-1]
    except (OSError, IndexError):
        return ": journalctl -u niso-etcd has the reason"
    try:
        entry = json.loads(last)
        return "".join(f": {entry[name]}" for name in ("msg", "error") if entry.get(name))
    except (ValueError, AttributeError):
        return f": {last[:300]}"


# --- members of etcd ------------------------------------------------------------------------------

PATIENCE_S = 30.0
_MEMBER_PAUSE_S = 0.3
_ANSWER_S = 1.0
_NOT_YET = 9  # FAILED_PRECONDITION (google.rpc.Code): members are not connected, or are learners
_SUM = 32  # bytes of SHA-256 after a snapshot


class EtcdMember(NamedTuple):
    """A member of etcd. ``name`` and ``client`` are "" until the member has started once."""

    identity: str
    name: str
    peer: str  # "https://198.51.100.1:2380"
    client: str  # "198.51.100.1:2379"
    learns: bool


class EtcdState(NamedTuple):
    """The status of an etcd member, as this member itself reports it."""

    version: str
    leader: str  # a member's identity; "0" if there is none
    identity: str
    revision: int
    ahead_s: float  # seconds that its clock is ahead of this host's; 0 if unknown
    alarms: tuple[str, ...]  # such as NOSPACE


def members(engine: Etcd) -> list[EtcdMember]:
    """Return all members of etcd, sorted by name. Raises NoAnswer, Refused."""
    answer = engine.call("/v3/cluster/member/list", {"linearizable": True}, repeatable=True)
    listed = [
        EtcdMember(
            str(member["ID"]),
            str(member.get("name", "")),
            str(next(iter(member.get("peerURLs", ())), "")),
            next(iter(member.get("clientURLs", ())), "").partition("://")[2],
            bool(member.get("isLearner")),
        )
        for member in answer.get("members", ())
    ]
    return sorted(listed, key=lambda member: member.name)


def endpoints(listed: list[EtcdMember]) -> tuple[str, ...]:
    """Return the client endpoints HOST:PORT of the voting members in ``listed``."""
    return tuple(member.client for member in listed if member.client and not member.learns)


def state(reach: Reach, client: str) -> EtcdState | None:
    """Return the status of the member at the endpoint ``client``, or None without an answer."""
    with Etcd(reach._replace(members=(client,)), _ANSWER_S, rounds=1) as engine:
        try:
            answer = engine.call("/v3/maintenance/status", {})
        except NoAnswer:
            return None
        ahead_s = _ahead_s(engine.date, time.time())
    head = answer.get("header", {})
    return EtcdState(
        str(answer.get("version", "")),
        str(answer.get("leader", "0")),
        str(head.get("member_id", "")),
        int(head.get("revision", 0)),
        ahead_s,
        tuple(re.findall(r"alarm:(\w+)", " ".join(map(str, answer.get("errors", ()))))),
    )


_ALARMS = {
    "NOSPACE": ("is full: nothing new can be claimed", "etcdctl defrag, then etcdctl alarm disarm"),
    "CORRUPT": ("has members with different data", "etcdctl alarm list names them"),
}


def alarmed(states: Iterable[EtcdState]) -> list[tuple[str, str]]:
    """Return (warning, next step) for each alarm in the states of etcd's members."""
    known = dict.fromkeys(alarm for state in states for alarm in state.alarms)
    said = (_ALARMS.get(alarm, ("has an alarm", "etcdctl alarm list")) for alarm in known)
    return [
        (f"etcd {what} (alarm {alarm})", step)
        for alarm, (what, step) in zip(known, said, strict=True)
    ]


def _ahead_s(date: str, now_s: float) -> float:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp() - now_s
    except ValueError:
        return 0.0


def add(engine: Etcd, peer: str) -> None:
    """Add a member with the URL ``peer`` to etcd as a learner, unless it is a member already."""
    request = {"peerURLs": [peer], "isLearner": True}
    _insist(
        lambda: engine.call("/v3/cluster/member/add", request),
        lambda: any(member.peer == peer for member in members(engine)),
    )


def promote(engine: Etcd, peer: str) -> None:
    """Make the learner with the peer URL ``peer`` a voting member, once it has all data."""

    def it() -> EtcdMember:
        for member in members(engine):
            if member.peer == peer:
                return member
        raise NotFound(f"etcd has no member {peer}", "niso cluster status lists them")

    _insist(
        lambda: engine.call("/v3/cluster/member/promote", {"ID": it().identity}),
        lambda: not it().learns,
    )


def remove(engine: Etcd, member: EtcdMember) -> None:
    """Remove a member from etcd. Do nothing if it was already removed. Raises NoAnswer."""
    _insist(
        lambda: engine.call("/v3/cluster/member/remove", {"ID": member.identity}),
        lambda: all(other.identity != member.identity for other in members(engine)),
    )


def snapshot(engine: Etcd) -> Iterator[bytes]:
    """Yield a backup of etcd in blocks, for ``etcdutl snapshot restore``. Raises Error."""
    digest, last = hashlib.sha256(), b""
    for answer in engine.stream("/v3/maintenance/snapshot", {}):
        blob = last + base64.b64decode(answer.get("blob", ""))
        last = blob[-_SUM:]
        digest.update(blob[:-_SUM])
        yield blob[:-_SUM]
    if digest.digest() != last:
        raise Error("the snapshot of etcd is not whole", "try again")
    yield last


def _insist(request: Callable[[], object], is_done: Callable[[], bool]) -> None:
    """Repeat ``request`` for `PATIENCE_S` s or until ``is_done()``. Raises NoAnswer, Refused."""
    until = time.monotonic() + PATIENCE_S
    while not is_done():
        try:
            request()
        except NoAnswer as error:
            wait = not isinstance(error, Refused) or error.code == _NOT_YET
            if not wait or time.monotonic() >= until:
                raise
            time.sleep(_MEMBER_PAUSE_S)
