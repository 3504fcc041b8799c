"""List and change etcd's members (etcd.io/docs/v3.5/op-guide/runtime-configuration).

A new member starts as a learner: it counts for the quorum once it has all data. etcd changes
members only if all have been connected for 5 s, so requests are repeated for a while.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time

from niso.base.errors import Error, NotFound
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.etcd import Access, Etcd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PATIENCE_S = 30.0
_MEMBER_PAUSE_S = 0.3
_ANSWER_S = 1.0
_NOT_YET = 9  # FAILED_PRECONDITION (google.rpc.Code): members are not connected, or are learners
_SUM = 32  # bytes of SHA-256 after a snapshot


class EtcdMember(NamedTuple):
    """A member of etcd. ``name`` and ``client`` are empty until it has started once."""

    identity: str
    name: str
    peer: str  # "https://198.51.100.1:2380"
    client: str  # "198.51.100.1:2379"
    learns: bool


class EtcdState(NamedTuple):
    """The status that a member reports."""

    version: str
    leader: str  # a member's identity; "0" if there is none
    identity: str
    revision: int
    ahead_s: float = 0.0  # seconds that its clock is ahead of this host's; 0 if unknown
    alarms: tuple[str, ...] = ()  # such as NOSPACE


def members(engine: Etcd) -> list[EtcdMember]:
    """Return all members, sorted by name. Raises NoAnswer, Refused."""
    listed = []
    answer = engine.call("/v3/cluster/member/list", {"linearizable": True}, repeatable=True)
    for member in answer.get("members", ()):
        client = next(iter(member.get("clientURLs", ())), "")
        listed.append(
            EtcdMember(
                str(member["ID"]),
                str(member.get("name", "")),
                str(next(iter(member.get("peerURLs", ())), "")),
                client.partition("://")[2],
                bool(member.get("isLearner")),
            )
        )
    return sorted(listed, key=lambda member: member.name)


def endpoints(listed: list[EtcdMember]) -> tuple[str, ...]:
    """Return the client addresses of the members that count for the quorum."""
    return tuple(member.client for member in listed if member.client and not member.learns)


def state(access: Access, client: str) -> EtcdState | None:
    """Return the status that one member reports; None if it does not answer."""
    with Etcd(access._replace(members=(client,)), _ANSWER_S, rounds=1) as engine:
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
    """Return (warning, next step) for each alarm of etcd."""
    known = dict.fromkeys(alarm for state in states for alarm in state.alarms)
    said = (_ALARMS.get(alarm, ("has an alarm", "etcdctl alarm list")) for alarm in known)
    return [
        (f"etcd {what} (alarm {alarm})", step)
        for alarm, (what, step) in zip(known, said, strict=True)
    ]


def _ahead_s(date: str, now_s: float) -> float:
    """Return how far an HTTP date is ahead of ``now_s``, to the second; 0 if it is not a date."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp() - now_s
    except ValueError:
        return 0.0


def add(engine: Etcd, peer: str) -> None:
    """Add a member as a learner; no-op if it is a member. Raises NoAnswer, Refused."""
    request = {"peerURLs": [peer], "isLearner": True}
    _insist(
        lambda: engine.call("/v3/cluster/member/add", request),
        lambda: any(member.peer == peer for member in members(engine)),
    )


def promote(engine: Etcd, peer: str) -> None:
    """Promote a learner to a voting member as soon as it has all data.

    Raises NotFound, NoAnswer, Refused.
    """

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
    """Remove a member; no-op if it no longer exists. Raises NoAnswer, Refused."""
    _insist(
        lambda: engine.call("/v3/cluster/member/remove", {"ID": member.identity}),
        lambda: all(other.identity != member.identity for other in members(engine)),
    )


def snapshot(engine: Etcd) -> Iterator[bytes]:
    """Yield etcd's data, as a file for ``etcdutl snapshot restore``.

    Raises NoAnswer, and Error if the checksum does not match.
    """
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
    """Repeat a request until ``is_done``, for at most `PATIENCE_S`. Raises NoAnswer, Refused."""
    until = time.monotonic() + PATIENCE_S
    while not is_done():
        try:
            request()
        except NoAnswer as error:
            wait = not isinstance(error, Refused) or error.code == _NOT_YET
            if not wait or time.monotonic() >= until:
                raise
            time.sleep(_MEMBER_PAUSE_S)
