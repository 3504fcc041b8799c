"""Let a new pod wait for its policy, and the agent say that it stands.

The plugin of CNI attaches a pod closed, wakes the agent by its named pipe, and waits until the
attachment's labels in the store say that the agent has applied the pod's policy. So it does not
matter when either is killed: a pod is closed, or has a policy.
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
"""Nobody but the host reaches the pod, and it reaches nobody."""
_NAMESPACE, _NAME, _UID, _POLICY = "pod_namespace", "pod_name", "pod_uid", POD_POLICY
_WAITS, _STANDS = "waits", "stands"
_FIRST_S, _LONGEST_S = 0.002, 0.05
"""Between two looks at the store."""


class Who(NamedTuple):
    """The pod of an attachment, as its runtime calls it."""

    namespace: str
    name: str
    uid: str


def agent_runs() -> bool:
    """Return whether there is an agent to wait for; it is woken."""
    return wake.agent(wake.KUBERNETES)


def closed(request: Request, pod: Who) -> Request:
    """Return the request of a pod that waits for its policy."""
    labels = {**dict(request.labels), **_labels(pod, _WAITS)}
    return request._replace(policy=CLOSED, labels=tuple(sorted(labels.items())))


def standing(request: Request, policy: Policy) -> Request:
    """Return the request of a pod whose policy stands."""
    labels = {**dict(request.labels), _POLICY: _STANDS}
    return request._replace(policy=policy, labels=tuple(sorted(labels.items())))


def pod_of(attached: Attached) -> Who | None:
    """Return the pod whose policy is the agent's; None of other attachments."""
    labels = wishes(attached).get("labels", {})
    known = (labels.get(_NAMESPACE, ""), labels.get(_NAME, ""), labels.get(_UID, ""))
    return Who(*known) if _POLICY in labels and all(known) else None


def stands(attached: Attached) -> bool:
    """Return whether the agent has applied the policy of a pod."""
    return bool(wishes(attached).get("labels", {}).get(_POLICY) == _STANDS)


def wait(store: Store, service: str, limit_s: float) -> bool:
    """Wait until the policy of a pod stands; return whether it does after ``limit_s`` seconds."""
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
