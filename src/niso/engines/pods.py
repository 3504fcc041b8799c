"""Attach Kubernetes pods closed, and wait until the agent has applied their network policies.

The configuration's key ``kubernetes`` requests it. The policies come from `niso kubernetes`.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.engines.cni import WRONG_CONFIG, WRONG_VARIABLE, Failure
from niso.kubernetes import waiting
from niso.services import attachments

if TYPE_CHECKING:
    from niso.engines.cni_calls import Call
    from niso.services.attach_request import Request
    from niso.services.machine import Machine
    from niso.store.attached_rows import Attached
    from niso.store.store import Store

_TRY_AGAIN, _NOT_READY = 11, 50
_WAIT_S, _LONGEST_S = 10, 120
_NO_AGENT = "niso kubernetes does not run, so the network policies of pods are not known"
_HINT = "systemctl status niso_kubernetes"


def require(call: Call, same: Attached | None) -> None:
    """Raise Failure unless the pod is named, and its policy is applied or the agent is running."""
    _wait_s(call)
    _who(call)
    if not (same is not None and waiting.stands(same)) and not waiting.agent_runs():
        raise Failure(_TRY_AGAIN, _NO_AGENT, _HINT)


def require_agent() -> None:
    """Raise Failure if no pod can be attached (STATUS)."""
    if not waiting.agent_runs():
        raise Failure(_NOT_READY, _NO_AGENT, _HINT)


def closed(store: Store, call: Call, request: Request, same: Attached | None) -> Request:
    """Return a pod's request with the closed policy, or with its policy if that is applied already.

    A pod has no aliases: with one, its user could impersonate a pod that other policies name.
    Raises Failure.
    """
    if request.aliases:
        raise Failure(WRONG_CONFIG, "aliases: pods of Kubernetes have none", "use a Service")
    pod = _who(call)
    now = attachments.current(store, same.service) if same is not None else None
    request = waiting.closed(request, pod)
    if same is None or now is None or waiting.pod_of(same) != pod or not waiting.stands(same):
        return request
    return waiting.standing(request, now.policy)


def wait(machine: Machine, call: Call, service: str) -> None:
    """Wait for the policy.

    If it is not applied in time, detach the pod and raise Failure, so that the runtime tries again.
    """
    limit_s = _wait_s(call)
    waiting.agent_runs()
    try:
        stands = waiting.wait(machine.store, service, limit_s)
    except BaseException:
        attachments.detach(machine, service, call.container)
        raise
    if not stands:
        attachments.detach(machine, service, call.container)
        raise Failure(
            _TRY_AGAIN,
            f"the network policies of {service} were not applied within {limit_s:g} s",
            _HINT,
        )


def _who(call: Call) -> waiting.Who:
    words = ("NAMESPACE", "NAME", "UID")
    namespace, name, uid = (call.args.get(f"K8S_POD_{word}", "") for word in words)
    if not (namespace and name and uid):
        raise Failure(WRONG_VARIABLE, "CNI_ARGS names no pod, and the key kubernetes needs one")
    return waiting.Who(namespace, name, uid)


def _wait_s(call: Call) -> float:
    given = call.config["kubernetes"]
    value = given.get("wait_policy_s", _WAIT_S)
    if given.keys() - {"wait_policy_s"} or type(value) not in (int, float):
        raise Failure(WRONG_CONFIG, "kubernetes has only the key wait_policy_s, in seconds")
    if not 0 < value <= _LONGEST_S:
        raise Failure(WRONG_CONFIG, f"kubernetes.wait_policy_s: more than 0, up to {_LONGEST_S}")
    return float(value)
