"""Define the part of the ruleset for policies in audit, which deny nothing for some time.

A packet that such a policy denies is recorded and returns to ``forward``, where all other rules
still apply to it. Sets hold the addresses of the services. The comment of an element has the
service, and when its audit began and ends, in seconds since 1970. The kernel deletes the element
after its timeout, with or without niso; then the policy drops. So the end of an element is not a
difference: one that is about to end is neither wanted nor seen. An audit without an end has an
element without a timeout. docs/design/policy.md explains audits.
"""

from __future__ import annotations

from niso.kernel.nft_sensor import AUDITED, REFUSE

_WORDS = {4: "ip", 6: "ip6"}
_OWN = {"in": "daddr", "out": "saddr"}

PLACES = tuple(f"audit_{way}{family}" for way in _OWN for family in _WORDS)
"""The sets of the inet table. A counter of an element has the packets that were not denied."""


def chain(ingress: bool, log: bool) -> str:
    """Return the chain for what a policy in audit denies."""
    return f"audit_{'log_' if log else ''}{'in' if ingress else 'out'}"


VERDICTS = frozenset(f"goto {chain(way, log)}" for way in (True, False) for log in (True, False))
"""The verdicts of the elements of policies in audit, also when it has ended."""


def _chain(way: str, log: bool) -> str:
    deny = f"log_{way}" if log else REFUSE
    lines = [
        f"{word} {_OWN[way]} @audit_{way}{family} goto {AUDITED}" for family, word in _WORDS.items()
    ]
    # counted here, since the counters of the policy have the packets from before the end too
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
"""The longest audit that has an end, and the default, in seconds."""

NEVER = -1
"""The end of an audit that lasts until the manifest ends it. Its element has no timeout."""
ENDLESS = float("inf")
"""The seconds that such an audit still lasts."""

SLACK_S = 60
"""How far the clock may have been set back since an audit began, in seconds.

With an earlier clock, such as one that starts at 1970, the audit's end cannot be known, and the
policy is enforced, unless the audit has no end.
"""

_GRACE_S = 2  # an element with less time left is neither added nor deleted
_EXPIRES = "expires "
_WITHOUT_END = "without a timeout"
_WITH_END = "with a timeout"
_TOO_LONG = "with a timeout after its end"


def comment(service: str, since: int, until: int) -> str:
    """Return the comment of a service's elements."""
    return f"{service} {since} {until}"


def left_s(since: int, until: int, now: float) -> float:
    """Return how long an audit still lasts, in seconds, or `ENDLESS`.

    It is 0 if it has ended, or by a wrong clock.
    """
    if until == NEVER and since:
        return ENDLESS
    if now < since - SLACK_S:
        return 0
    return max(0, min(until - now, MOST_S))


def timeout_s(text: str, now: float) -> float:
    """Return how long the element with this comment shall live, in seconds, or `ENDLESS`."""
    try:
        _, since, until = text.split(" ")
        return left_s(int(since), int(until), now)
    except ValueError:  # not niso's
        return 0


def is_wanted(text: str, now: float) -> bool:
    """Return whether the element with this comment shall exist."""
    return timeout_s(text, now) > _GRACE_S


def expires(milliseconds: int) -> str:
    """Return the value with which an element is read that ends by itself."""
    return f"{_EXPIRES}{milliseconds / 1000}"


def seen(value: str, text: str, now: float) -> str | None:
    """Return the value of an element as a difference shows it: "" if it ends when it should.

    ``value`` is as `expires` returns it, and ``text`` the comment. Returns None if the element is
    about to end.
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
