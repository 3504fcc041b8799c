"""Run this host's etcd member: `execute` becomes it; `start` and `stop` work without systemd.

Its folder is next to the state folder. etcd runs as the user of Debian's package if it exists, with
copies of the certificates, which it reads at each new connection.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import time
from collections.abc import Sequence

from niso.base import files, paths
from niso.base.addresses import bracketed
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster import certificates
from niso.cluster.config import CLIENT_PORT, PEER_PORT, Config

if TYPE_CHECKING:
    from typing import NoReturn

USER = "etcd"
_START_S, _STOP_S, _PAUSE_S = 60.0, 10.0, 0.05
_REFUSED = "refused.pem"
_COPIED = (certificates.AUTHORITY, certificates.CERTIFICATE, certificates.KEY)


def folder() -> str:
    """Return the folder of etcd's data: /var/lib/niso-etcd."""
    return f"{paths.state_dir()}-etcd"


def data() -> str:
    return os.path.join(folder(), "data")


def log() -> str:
    """Return etcd's log file, for when systemd does not run it."""
    return os.path.join(folder(), "log")


def client_place(address: str) -> str:
    """Return the client endpoint of the member at an address."""
    return f"{bracketed(address)}:{CLIENT_PORT}"


def peer_url(address: str) -> str:
    """Return the peer URL of the member at an address."""
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
    """Return etcd's options. Those beginning with ``initial`` count only at its first start."""
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
        # etcd reads both at each new connection
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
    """Create etcd's folders and certificate copies; return etcd's user, None for root."""
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
    """Make this host's member refuse more certificates, by serial number; return all refused ones.

    Those refused before stay refused, because etcd's data may be from a backup. Raises Error,
    OSError.
    """
    before = (files.read(_refused_file()) or b"").decode().split()
    every = sorted({*before, *serials})
    if every != before:
        _write_refused(every)
        files.replace(_refused_file(), "".join(f"{serial}\n" for serial in every).encode(), 0o600)
    return every


def _write_refused(serials: Sequence[str]) -> None:
    made = certificates.refusal(paths.cluster_dir(), serials)
    files.replace(os.path.join(folder(), "tls", _REFUSED), made, 0o400, _user()[1])


def _refused_file() -> str:
    return os.path.join(paths.cluster_dir(), "refused")


def _user() -> tuple[pwd.struct_passwd | None, tuple[int, int]]:
    """Return the user that etcd runs as, None for root, and its (uid, gid)."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return None, (0, 0)
    return user, (user.pw_uid, user.pw_gid)


def execute(config: Config, *more: str) -> NoReturn:
    """Execute etcd in this process, with further options; does not return.

    Raises Error if this host has no member, or etcd is not installed.
    """
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
    """Start etcd in the background, with further options. Raises Error, OSError.

    It outlives this process, and is not restarted by anything.
    """
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
    """Wait until this host's member answers. Raises Error with the last line of its log."""
    from niso.cluster import members

    until = time.monotonic() + _START_S
    while members.state(config.access(), client_place(config.address)) is None:
        if time.monotonic() >= until or (os.path.exists(log()) and pid() is None):
            raise Error(f"etcd does not start{_last_words()}", "it needs ports 2379 and 2380 (TCP)")
        time.sleep(_PAUSE_S)


def stop() -> None:
    """Stop this host's etcd if it runs without systemd; no-op if it does not run."""
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
    """Reduce etcd to this host's member alone, with its data. The member must not be running.

    Raises Error.
    """
    start(config, "--force-new-cluster")
    try:
        wait(config)
    finally:
        stop()


def forget() -> None:
    """Delete etcd's folder. The member must not be running."""
    shutil.rmtree(folder(), ignore_errors=True)


def pid() -> int | None:
    """Return the pid of this host's etcd; None if it is not running."""
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
    """Return the last error in etcd's log as ": REASON"; "" if there is none."""
    import json

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
