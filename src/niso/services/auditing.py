"""Compute when the audit of a policy ends, and whether it has ended."""

from __future__ import annotations

import time

from niso.base.errors import InvalidInput
from niso.base.lite_typing import NamedTuple
from niso.kernel import nft_audit
from niso.kernel.nft_audit import NEVER
from niso.plan.records import Audit, Policy
from niso.store.store import Store

_KEY = "network.policy.audit_until"


def begun(policy: Policy, before: Policy | None, now: float) -> Policy:
    """Return a policy in audit with the end of the audit, given the service's previous policy.

    If the audit is written as before, it keeps its end: only a change of the manifest prolongs it.
    Raises InvalidInput if a new audit would last too long or has ended already, since its author
    did not mean to drop anything.
    """
    audit = policy.audit
    assert audit is not None
    held = before.audit if before is not None else None
    if held is not None and held.text == audit.text:
        return policy._replace(audit=held)
    since = int(now)
    if audit.until == NEVER:
        return policy._replace(audit=audit._replace(since=since))
    until = audit.until or since + nft_audit.MOST_S
    if until <= since:
        raise InvalidInput(
            "has passed",
            'a later date; mode = "enforce" is the policy without an audit',
            _KEY,
            value=audit.text,
        )
    if until > since + nft_audit.MOST_S:
        raise InvalidInput(
            f"is more than {nft_audit.MOST_S // 86_400} days ahead",
            f'the latest is {time_text(since + nft_audit.MOST_S)}; "never" has no end',
            _KEY,
            value=audit.text,
        )
    return policy._replace(audit=Audit(audit.text, since, until))


def kept(policy: Policy, store: Store, name: str) -> Policy:
    """Return a service's policy with the end of its audit from the store.

    If the stored end is missing or damaged, the audit has ended.
    """
    try:
        held = store.policy(name)
    except (ValueError, TypeError, LookupError):
        held = None
    assert policy.audit is not None
    audit = None if held is None else held.audit
    if audit is None or audit.text != policy.audit.text:
        audit = Audit(policy.audit.text)
    return policy._replace(audit=audit)


class Term(NamedTuple):
    """The audit period of a service's policy.

    ``until`` is in seconds since 1970, or `NEVER`.
    """

    until: int
    lasts: bool

    @property
    def text(self) -> str:
        """Return the end as text that follows "until"."""
        return "the manifest ends it" if self.until == NEVER else time_text(self.until)


def terms(store: Store) -> dict[str, Term]:
    """Return the audit period of each service with such a policy, including ended ones."""
    now = time.time()
    return {
        service: Term(until, nft_audit.left_s(since, until, now) > 0)
        for service, (since, until) in store.audits().items()
    }


def ended(store: Store) -> list[str]:
    """Return the active services whose audit has ended, so that their policy is enforced."""
    terms_ = terms(store)
    return [name for name in store.active_services() if name in terms_ and not terms_[name].lasts]


def time_text(seconds: float) -> str:
    """Format a time for people, in the host's time zone, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
