"""Define the part of the ruleset for policies in audit mode, which record instead of deny.

A packet that such a policy would deny is recorded and returns to ``forward``, where all other rules
still apply to it. Sets contain the addresses of the audited services. The comment of an element has
the service, and the begin and end of its audit in seconds since 1970. The element has a timeout:
when the kernel deletes it, with or without niso running, the policy starts to drop. So an expired
element is not reported as drift: an element that is about to expire is neither wanted nor seen. An
audit without an end has an element without a timeout. docs/design/policy.md explains audits.
"""

from __future__ import annotations

from niso.kernel.nft_sensor import AUDITED, REFUSE

_WORDS = {4: "ip", 6: "ip6"}
_OWN = {"in": "daddr", "out": "saddr"}

PLACES = tuple(f"audit_{way}{family}" for way in _OWN for family in _WORDS)
"""The sets of the inet table with audited addresses. Their counters count packets not denied."""


def chain(ingress: bool, log: bool) -> str:
    """Return the name of the chain for packets that a policy in audit would deny."""
    return f"audit_{'log_' if log else ''}{'in' if ingress else 'out'}"


VERDICTS = frozenset(f"goto {chain(way, log)}" for way in (True, False) for log in (True, False))
"""The verdicts of the map elements of policies in audit; they stay after the audit has ended."""


def _chain(way: str, log: bool) -> str:
    deny = f"log_{way}" if log else REFUSE
    lines = [
        f"{word} {_OWN[way]} @audit_{way}{family} goto {AUDITED}" for family, word in _WORDS.items()
    ]
    # counted here, because the counters of the policy include packets from before the end of the
    # audit
    lines += [
        f"{word} {_OWN[way]} @no_start_{way}{family} goto {deny}" for family, word in _WORDS.items()
    ]
    body = "\n".join(f"\t\t{line}" for line in (*lines, "drop"))
    return f"\tchain {chain(way == 'in', log)} {{\n{body}\n\t}}\n"


SETS = "\n".join(
    f"\tset {name} {{ type ipv{name[-1]}_addr; flags timeout; counter; }}" for name in PLACES
)

CHAINS = "\n".join(_chain(way, log) for way in _OWN for log in (False, True))

MOST_S = 14 * 86_400
"""The longest finite duration of an audit, and the default, in seconds."""

NEVER = -1
"""The end of an audit that lasts until the manifest ends it. Its element has no timeout."""
ENDLESS = float("inf")
"""The remaining seconds of an audit without an end."""

SLACK_S = 60
"""How far the clock may have been set back since an audit began, in seconds.

With an earlier clock, such as one that starts at 1970, the end of the audit cannot be determined,
and the policy is enforced, unless the audit has no end.
"""

_GRACE_S = 2  # an element with less time left is neither added nor deleted
_EXPIRES = "expires "
_WITHOUT_END = "without a timeout"
_WITH_END = "with a timeout"
_TOO_LONG = "with a timeout after its end"


def comment(service: str, since: int, until: int) -> str:
    """Return the comment of the elements of a service."""
    return f"{service} {since} {until}"


def left_s(since: int, until: int, now: float) -> float:
    """Return the remaining time of an audit in seconds, or `ENDLESS`.

    It is 0 if the audit has ended, or if the clock is implausible (see `SLACK_S`).
    """
    if until == NEVER and since:
        return ENDLESS
    if now < since - SLACK_S:
        return 0
    return max(0, min(until - now, MOST_S))


def timeout_s(text: str, now: float) -> float:
    """Return the remaining lifetime of the element with this comment in seconds, or `ENDLESS`."""
    try:
        _, since, until = text.split(" ")
        return left_s(int(since), int(until), now)
    except ValueError:  # not a comment of niso's
        return 0


def is_wanted(text: str, now: float) -> bool:
    """Return whether an element with this comment should exist now."""
    return timeout_s(text, now) > _GRACE_S


def expires(milliseconds: int) -> str:
    """Return the value that represents an element with a timeout, as read from the kernel."""
    return f"{_EXPIRES}{milliseconds / 1000}"


def seen(value: str, text: str, now: float) -> str | None:
    """Return the value of an element for comparison: "" if its timeout is as desired.

    ``value`` is as `expires` returns it, and ``text`` the comment. Returns None if the element is
    about to expire.
    """
    right = timeout_s(text, now)
    if not value.startswith(_EXPIRES):
        return "" if right == ENDLESS else _WITHOUT_END
    if right == ENDLESS:
        return _WITH_END
    left = float(value.removeprefix(_EXPIRES))
    if right <= _GRACE_S and left <= 2 * _GRACE_S:
        return None
    return _TOO_LONG if left > right + _GRACE_S else ""
