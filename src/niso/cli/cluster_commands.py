"""Run niso cluster, niso agent and niso kubernetes.

The agents run in the foreground until they receive SIGTERM, SIGINT or SIGHUP.
"""

from __future__ import annotations

import os
import stat
import sys

from niso.api.host import Host, connect
from niso.api.host_cluster import ExistingEtcd
from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.cli import output
from niso.cli.general_commands import follow
from niso.cli.output import Progress, duration, result
from niso.cli.parse import Args

if TYPE_CHECKING:
    import niso


# --- niso cluster ---------------------------------------------------------------------------------


COLUMNS = ("HOST", "ADDRESS", "STATE", "ETCD", "NETWORKS", "SERVICES", "NISO", "BEHIND")
_MOST_BYTES = 1 << 20


def run_cluster(name: str, args: Args) -> int:
    action = name.removeprefix("cluster ").replace(" ", "_")
    return int(globals()[f"_{action}"](connect(), args))


def _init(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        made = host.cluster.init(
            name=args.name or "",
            address=args.address or "",
            etcd=_existing(args),
            encrypt=args.encrypt or "",
        )
    where = "an existing etcd" if not made.members else "member 1 of etcd"
    shown = f"""\
cluster {made.cluster}: created; this host is {made.host} ({made.address}), {where}
  next: niso cluster invite HOST --address ADDRESS | ssh HOST niso cluster join -"""
    return result(args, made, lambda _: print(shown))


def _recover(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        made = host.cluster.be_only_member() if args.force else host.cluster.init(restore=True)
    if args.force:
        return result(args, made, lambda _: print("this host has the only member of etcd"))
    shown = f"""\
cluster {made.cluster}: written again, as {made.host} ({made.address}) knows it
  next: niso cluster status, and on hosts that ran a member of etcd whose data are
  lost, niso cluster member remove and then add"""
    return result(args, made, lambda _: print(shown))


def _existing(args: Args) -> ExistingEtcd | None:
    if not args.etcd:
        for name in ("cacert", "cert", "key", "user", "prefix"):
            if getattr(args, name):
                raise UsageError("needs --etcd", "it is about an existing etcd", f"--{name}")
        return None

    urls = tuple(args.etcd.split(","))
    cacert, cert, key, user = (
        file or None for file in (args.cacert, args.cert, args.key, args.user)
    )
    return ExistingEtcd(urls, cacert, cert, key, user, args.prefix or "")


def _invite(host: Host, args: Args) -> int:
    if os.isatty(1):
        raise UsageError(
            "the invitation has a key, which is not for a terminal",
            f"niso cluster invite {args.host} ... > {args.host}.join, or"
            f" | ssh {args.host} niso cluster join -",
        )
    text = host.cluster.invite(
        args.host, address=args.address or "", renew=args.renew, member=args.member
    )
    if stat.S_ISREG(os.fstat(1).st_mode):
        os.fchmod(1, 0o600)  # the shell has created the file, readable by everyone
    sys.stdout.write(text)
    return 0


def _join(host: Host, args: Args) -> int:
    try:
        if args.file == "-":
            text = sys.stdin.buffer.read(_MOST_BYTES)
        else:
            with open(args.file, "rb") as file:
                text = file.read(_MOST_BYTES)
    except OSError as error:
        reason = (error.strerror or "").lower()
        hint = "the file of niso cluster invite"
        raise UsageError(f"cannot read {args.file}: {reason}", hint) from None
    member = {1: True, 2: False}.get(args.member)
    with Progress(args) as host.progress:
        made = host.cluster.join(text, member=member, encrypt=args.encrypt or "")
    shown = f"cluster {made.cluster}: joined as {made.host}, {_membership(made)}"
    return result(args, made, lambda _: print(shown))


def _membership(made: niso.Membership) -> str:
    if not made.member:
        return "not a member of etcd"
    number = f"member {made.members} of etcd"
    missing = made.members + 1 if made.members % 2 == 0 else 0
    if missing:
        return f"{number}; one more makes it survive the loss of {(missing - 1) // 2}"
    lost = (made.members - 1) // 2
    return f"{number}, which survives the loss of {lost}" if lost else number


def _leave(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        name = host.cluster.leave(force=args.force)
    print(f"{name}: has left the cluster")
    return 0


def _forget(host: Host, args: Args) -> int:
    gone = host.cluster.forget(args.host)
    parts = [", ".join(gone.services)] if gone.services else []
    parts += ["its certificate, which is withdrawn"] if gone.certificates else []
    print(f"{args.host}: forgotten{', with ' if parts else ''}{' and '.join(parts)}")
    return 0


def _member_add(host: Host, args: Args, remove: bool = False) -> int:
    change = host.cluster.remove_member if remove else host.cluster.add_member
    with Progress(args) as host.progress:
        count = change(args.host or "")
    lost = (count - 1) // 2 or "none"
    what = "removed" if remove else "added"
    print(f"member {what}: etcd has {count}, and survives the loss of {lost}")
    return 0


def _member_remove(host: Host, args: Args) -> int:
    return _member_add(host, args, remove=True)


def _backup(host: Host, args: Args) -> int:
    size = host.cluster.backup(args.file)
    print(f"{output.escaped(args.file)}: {size} bytes")
    return 0


def _etcd(host: Host, args: Args) -> int:
    host.cluster.become_etcd()
    return 1


def _agent(host: Host, args: Args) -> int:
    return follow(host.cluster.follow)


def _status(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        seen = host.cluster.status()
    result(args, seen, _print_status)
    return 0 if seen.answers else 1


def _print_status(seen: niso.ClusterStatus) -> None:
    print(_headline(seen))
    members = {
        member.name: "no answer"
        if member.version is None
        else "leader"
        if member.leader
        else "learns"
        if member.learns
        else "member"
        for member in seen.members
        if member.name
    }
    output.table(
        COLUMNS,
        [
            (
                row.name,
                row.address,
                row.state if row.gone_s is None else f"gone for {duration(row.gone_s)}",
                members.get(row.name, "-"),
                ", ".join(row.networks) or "-",
                str(row.services) if seen.answers else "-",
                row.niso or "-",
                "-" if row.behind_s is None else duration(row.behind_s),
            )
            for row in seen.hosts
        ],
    )
    print(f"networks that span hosts: {', '.join(seen.networks) or 'none'}")
    gone = [row.name for row in seen.hosts if row.state == "gone" and row.services]
    if gone and seen.answers:
        print(
            f"  hint: services of {', '.join(gone)} keep their names and addresses; "
            f"niso activate NAME --from-lost-host moves one here"
        )
    late = [row.name for row in seen.hosts if (row.behind_s or 0) >= 1 and row.state != "gone"]
    if late and seen.answers:
        print(f"  hint: the agent of {', '.join(late)} is behind: journalctl -u niso-agent there")


def _headline(seen: niso.ClusterStatus) -> str:
    there = [member for member in seen.members if member.version]
    versions = ", ".join(sorted({member.version for member in there if member.version}))
    leader = next(
        (f", leader {member.name}" for member in there if member.leader and member.name), ""
    )
    etcd = f"etcd {versions}".strip()
    parts = (
        f"cluster {seen.cluster}",
        f"{etcd}, {len(there)} of {len(seen.members)} answer{leader}",
        f"revision {seen.revision}" if seen.revision else "",
        "TLS" if seen.tls else "no TLS",
        f"WireGuard ({seen.encryption})" if seen.encryption else "",
    )
    return "  ".join(filter(None, parts))


# --- niso kubernetes ------------------------------------------------------------------------------


def run_kubernetes(name: str, args: Args) -> int:
    host, action = connect(), name.removeprefix("kubernetes ")
    if action == "run":
        return follow(lambda log: host.kubernetes.follow(log, args.kubeconfig))
    with Progress(args) as host.progress:
        if action == "enable":
            done = host.kubernetes.enable(args.kubeconfig)
        else:
            done = host.kubernetes.disable()
    state = f"{action}d" if done.changed else "unchanged"
    return result(args, done, lambda _: print(f"{done.service}: {state}  {done.unit}"))
