"""Make a new pod wait for its policy, and let the agent confirm it.

The CNI plugin attaches a pod closed, wakes the agent by its named pipe, and waits until the
attachment's labels in the store show that the agent has applied the pod's policy. Either process
can be killed at any point: a pod is always closed, or has its policy.
"""

from __future__ import annotations

import time

from niso.base import wake
from niso.base.lite_typing import NamedTuple
from niso.plan.records import Policy
from niso.services.attach_request import Request
from niso.services.attachments import POD_POLICY
from niso.store.attached_rows import Attached, wishes
from niso.store.store import Store

CLOSED = Policy(allow_from=(), egress_allow=())
"""The policy of a waiting pod: only the host can connect to it, and it can connect to nothing."""
_NAMESPACE, _NAME, _UID, _POLICY = "pod_namespace", "pod_name", "pod_uid", POD_POLICY
_WAITS, _STANDS = "waits", "stands"
_FIRST_S, _LONGEST_S = 0.002, 0.05
"""The first and the longest pause between two reads of the store."""


class Who(NamedTuple):
    """The pod of an attachment, with its identity in the container runtime."""

    namespace: str
    name: str
    uid: str


def agent_runs() -> bool:
    """Wake the agent; return whether it is running."""
    return wake.agent(wake.KUBERNETES)


def closed(request: Request, pod: Who) -> Request:
    """Return a pod's request with the closed policy, and labels that say it is waiting."""
    labels = {**dict(request.labels), **_labels(pod, _WAITS)}
    return request._replace(policy=CLOSED, labels=tuple(sorted(labels.items())))


def standing(request: Request, policy: Policy) -> Request:
    """Return a pod's request with its policy, and labels that say the policy is applied."""
    labels = {**dict(request.labels), _POLICY: _STANDS}
    return request._replace(policy=policy, labels=tuple(sorted(labels.items())))


def pod_of(attached: Attached) -> Who | None:
    """Return the pod of an attachment; None if the agent does not manage its policy."""
    labels = wishes(attached).get("labels", {})
    known = (labels.get(_NAMESPACE, ""), labels.get(_NAME, ""), labels.get(_UID, ""))
    return Who(*known) if _POLICY in labels and all(known) else None


def stands(attached: Attached) -> bool:
    """Return whether the agent has applied the policy of a pod."""
    return bool(wishes(attached).get("labels", {}).get(_POLICY) == _STANDS)


def wait(store: Store, service: str, limit_s: float) -> bool:
    """Wait until the agent has applied a pod's policy.

    Returns False if it has not within ``limit_s`` seconds, or the pod was detached.
    """
    until, pause = time.monotonic() + limit_s, _FIRST_S
    while True:
        attached = store.attachments.get(service)
        if attached is None or stands(attached):
            return attached is not None
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_S)


def _labels(pod: Who, policy: str) -> dict[str, str]:
    return {_NAMESPACE: pod.namespace, _NAME: pod.name, _UID: pod.uid, _POLICY: policy}
