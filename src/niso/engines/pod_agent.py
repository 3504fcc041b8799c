"""Apply Kubernetes' network policies to this node's pods. New pods wait for their policies.

The CNI plugin attaches a pod with the policy `CLOSED`, and wakes the agent. The plugin then waits
until a label of the attachment shows that the pod's own policy is applied. Plugin and agent can be
killed at any point: a pod has either the policy `CLOSED` or its own.

Running pods are updated before a new pod starts: their policies may still refer to an earlier pod
with the new pod's name. Kubernetes namespaces whose policies need few nftables elements are updated
first, and the number of elements of each Kubernetes namespace is limited. The users of one
Kubernetes namespace therefore cannot delay the pods of another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container, Mapping
from urllib.parse import quote

from niso.base.errors import Conflict, Error, ErrorGroup, InvalidInput
from niso.base.named_tuples import Any
from niso.change import attach
from niso.change.attach import POD_POLICY, Request
from niso.engines import api_server, network_policies
from niso.engines.api_server import ApiServer, ApiServerError, WatchedObjects
from niso.engines.network_policies import MOST_ELEMENTS, Objects, Pod, policy_of
from niso.plan.policy_elements import cost
from niso.plan.records import Policy
from niso.runtime import units as systemd
from niso.runtime.machine import Machine
from niso.runtime.units import KUBERNETES, UNITS, Following
from niso.store.attached_rows import NAMESPACE, AttachedRow, requested_settings
from niso.store.store import Store

LOOK_S = 30.0
"""Seconds between updates of all policies if no event occurs."""
GATHER_S = 0.005
_FAILED_S = 1.0
_MOST_OF_NAMESPACE = 30_000
"""The maximum number of nftables elements of the policies of one namespace."""
_HEAVY = 1000
"""A namespace whose policies need more nftables elements than this comes after others."""
_PODS, _SPACES = "/api/v1/pods", "/api/v1/namespaces"
_GROUP = "/apis/networking.k8s.io/v1"


class PodAgent:
    """An agent that applies network policies to the pods of this node.

    ``connect`` returns a new client of the API server. ``log`` prints a message.
    """

    def __init__(self, connect: Callable[[], ApiServer], log: Callable[[str], None]) -> None:
        self._connect = connect
        self._log = log
        self._wake = threading.Event()
        self._over = threading.Event()
        self._server: ApiServer | None = None
        self._said: dict[str, str] = {}

        def stream(path: str, parse: Callable[[Mapping[str, Any]], Any]) -> WatchedObjects:
            return WatchedObjects(path, connect, parse, self._wake.set, log)

        self.pods = stream(_PODS, network_policies.pod)
        self.spaces = stream(_SPACES, network_policies.namespace)
        self.policies = stream(f"{_GROUP}/networkpolicies", network_policies.network_policy)

    def poll(self, machine: Machine) -> list[str]:
        """Update the policies of all pods once. Return the names of changed attachments. Does
        nothing before pods, namespaces and policies have been listed. Raises Error.
        """
        if not all(watch.is_filled for watch in (self.pods, self.spaces, self.policies)):
            return []
        attachments = machine.store.attachments
        active = {row.name for row in attachments.rows() if row.active}
        local = {
            attached.service: (attached, pod)
            for attached in attachments.all()
            if attached.service in active and (pod := pod_of(attached)) is not None
        }
        errors: list[Error] = []
        new = {name for name, (attached, _) in local.items() if not is_applied(attached)}
        unread = {name for name in sorted(new) if not self._has_read(local[name][1], errors)}
        pods = self.pods.objects()
        listed = {name: pods.get(pod[:2]) for name, (_, pod) in local.items()}
        known = {
            name: pod
            for name, pod in listed.items()
            if pod is not None and pod.uid == local[name][1][2] and not pod.in_host_network
        }
        names: dict[tuple[str, str], tuple[str, ...]] = {}
        for name, known_pod in sorted(known.items()):
            key = (known_pod.namespace, known_pod.name)
            names[key] = (*names.get(key, ()), name)
        context = Objects(
            pods, dict(self.spaces.objects().values()), self.policies.objects(), names
        )
        self._warn(context, local)
        policies, costs = self._wanted(known, context)
        heavy = {name for name, pod in known.items() if costs[pod.namespace] > _HEAVY}
        ready = known.keys() & new - unread
        # a heavy policy may still allow a former pod that had a new pod's name
        present = [policy for n in heavy - new if (policy := machine.store.policy(n)) is not None]
        named = {entry.peer.name for policy in present for entry in policy.entries()}
        waits = ready & (heavy | named)
        changed: list[str] = []
        for group in (known.keys() - new - heavy, ready - waits, heavy - new, waits):
            for name in sorted(group, key=lambda name: (costs[known[name].namespace], name)):
                try:
                    if self._apply(machine, local[name][0], policies[name]):
                        changed.append(name)
                except Error as error:
                    # a pod that was detached or attached again since is updated separately
                    if machine.store.attachments.get(name) == local[name][0]:
                        error.service = error.service or name
                        errors.append(error)
                if name in heavy and name in changed and self._wake.is_set():
                    return changed  # a new pod waits; the next call continues
            if errors:
                raise ErrorGroup(errors)
        return changed

    def _wanted(
        self, known: Mapping[str, Pod], context: Objects
    ) -> tuple[dict[str, Policy], dict[str, int]]:
        """Return ({attachment: policy}, {Kubernetes namespace: number of nftables elements}).
        ``known`` are the pods by the names of their attachments. If the policy of a pod, or the
        policies of its Kubernetes namespace, would be too large, the pod's policy is `CLOSED`.
        """
        policies: dict[str, Policy] = {}
        each: dict[Policy, int] = {}
        for name, pod in known.items():
            try:
                policies[name] = policy = policy_of(pod, context)
                if policy not in each:
                    each[policy] = cost(policy, MOST_ELEMENTS)
            except InvalidInput as error:
                self._say(name, f"{error.message}: it is closed")
                policies[name] = CLOSED
        each[CLOSED] = 0
        costs = dict.fromkeys((pod.namespace for pod in known.values()), 0)
        for name in sorted(known, key=lambda name: (each[policies[name]], name)):
            space = known[name].namespace
            costs[space] += each[policies[name]]
            if costs[space] > _MOST_OF_NAMESPACE:
                costs[space] -= each[policies[name]]
                policies[name] = CLOSED
                self._say(
                    name,
                    f"the network policies of namespace {space} need more than"
                    f" {_MOST_OF_NAMESPACE} elements: it is closed",
                )
        return policies, costs

    def _has_read(self, pod: PodId, errors: list[Error]) -> bool:
        """Read a new pod and its policies from the API server into the caches of the watches. The
        watches may not have reported them yet. An error is added to ``errors``, and the result is
        then False. If ``errors`` is not empty, no request is sent, and the result is False.
        """
        namespace, name, _ = pod
        space = quote(namespace, safe="")
        query = {"fieldSelector": f"metadata.name={name}"}
        if errors:
            return False
        try:
            if self._server is None:
                self._server = self._connect()
            for stream, path, asked in (
                (self.pods, f"/api/v1/namespaces/{space}/pods", query),
                (self.policies, f"{_GROUP}/namespaces/{space}/networkpolicies", {}),
            ):
                data = self._server.get(path, asked)
                if data is None:
                    raise ApiServerError(f"{path}: the API server does not have it")
                stream.merge(data)
        except Error as error:
            errors.append(error)
            return False
        return True

    def _apply(self, machine: Machine, attached: AttachedRow, policy: Policy) -> bool:
        """Apply a pod's policy, or `CLOSED` if it is invalid. Return whether the attachment
        changed, or False if the pod is no longer attached or its namespace no longer exists.
        """
        now = attach.current(machine.store, attached.service)
        if now is None or not attached.lives(machine.kernel):
            return False
        wanted = applied(now, policy)
        try:
            if wanted != now:
                attach.attach(machine, wanted, instead_of=attached)
        except InvalidInput as error:
            self._say(attached.service, f"{error.message}: it is closed")
            wanted = applied(now, CLOSED)
            if wanted != now:
                attach.attach(machine, wanted, instead_of=attached)
        return wanted != now

    def _warn(self, context: Objects, local: Container[str]) -> None:
        wrong = {
            f"NetworkPolicy {space}/{name}": f"not understood, so {space} is closed: {policy.error}"
            for (space, name), policy in context.policies.items()
            if policy.error
        }
        self._said = {
            about: text
            for about, text in self._said.items()
            if not about or about in wrong or about in local
        }
        for about, text in wrong.items():
            self._say(about, text)

    def _say(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            self._log(f"{about}: {text}" if about else text)

    def run(self, machine: Machine) -> None:
        """Update the policies periodically and after each change, until `stop` is called."""
        for watch in (self.pods, self.spaces, self.policies):
            threading.Thread(target=watch.run, args=(self._over,), daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        while not self._over.is_set():
            self._wake.wait(LOOK_S * (0.5 + os.urandom(1)[0] / 255))
            self._over.wait(GATHER_S)
            self._wake.clear()
            if self._over.is_set():
                break
            try:
                self.poll(machine)
                self._said.pop("", None)
            except Error as error:
                self._say("", error.message)
                self._over.wait(_FAILED_S)
                self._wake.set()

    def stop(self) -> None:
        """Make `run` return soon. Does not wait for its end."""
        self._over.set()
        self._wake.set()

    def _listen(self) -> None:
        try:
            systemd.listen(KUBERNETES, self._wake.set, self._over)
        except OSError as error:
            self._log(f"new pods cannot wake the agent, and wait: {error}")


# --- a new pod waits ------------------------------------------------------------------------------

CLOSED = Policy(allow_from=(), egress_allow=())
"""The policy of a waiting pod: only the host can connect to it, and it can connect to nothing."""
_NAME, _UID, _POLICY = "pod_name", "pod_uid", POD_POLICY
_WAITS, _STANDS = "waits", "stands"
_FIRST_S, _LONGEST_S = 0.002, 0.05
"""The first and the longest pause in seconds between two reads of the store."""


type PodId = tuple[str, str, str]
"""(namespace, name, uid) of an attachment's pod; the uid is the container runtime's."""


def agent_runs() -> bool:
    """Make a running agent update the policies now. Return False if no agent runs."""
    return systemd.wake_agent(KUBERNETES)


def closed(request: Request, pod: PodId) -> Request:
    """Return a pod's request with the policy `CLOSED`, for which `is_applied` will be False."""
    own = {**dict(zip((NAMESPACE, _NAME, _UID), pod, strict=True)), _POLICY: _WAITS}
    labels = {**dict(request.labels), **own}
    return request._replace(policy=CLOSED, labels=tuple(sorted(labels.items())))


def applied(request: Request, policy: Policy) -> Request:
    """Return a pod's request with the pod's own policy, for which `is_applied` will be True."""
    labels = {**dict(request.labels), _POLICY: _STANDS}
    return request._replace(policy=policy, labels=tuple(sorted(labels.items())))


def pod_of(attached: AttachedRow) -> PodId | None:
    """Return the pod of an attachment, or None if it is no pod whose policy the agent applies."""
    labels = requested_settings(attached).get("labels", {})
    known = (labels.get(NAMESPACE, ""), labels.get(_NAME, ""), labels.get(_UID, ""))
    return known if _POLICY in labels and all(known) else None


def is_applied(attached: AttachedRow) -> bool:
    """Return whether the agent has applied the policy of the attached pod."""
    return bool(requested_settings(attached).get("labels", {}).get(_POLICY) == _STANDS)


def wait(store: Store, service: str, limit_s: float) -> bool:
    """Wait up to ``limit_s`` seconds until a pod's policy is applied. Return False on timeout."""
    until, pause = time.monotonic() + limit_s, _FIRST_S
    while True:
        attached = store.attachments.get(service)
        if attached is None or is_applied(attached):
            return attached is not None
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_S)


# --- running the agent, and its unit --------------------------------------------------------------

UNIT = "niso_kubernetes.service"
"""The unit's name. No service's unit can have it, because those begin with niso-."""
_LOCK = "niso.kubernetes"
_MARK = "# written by niso kubernetes --enable, removed by --disable; state folder "


def follow(machine: Machine, config: str, log: Callable[[str], None]) -> Following:
    """Return (run, stop), the functions of an agent that watches the pods of a Kubernetes cluster.
    ``config`` is the path of the kubeconfig. Raises Error if the kubeconfig is unusable.
    """
    access = api_server.read(config)
    ApiServer(access)  # raises for unusable certificates

    def connect() -> ApiServer:
        return ApiServer(api_server.read(config))

    agent = PodAgent(connect, log)

    def work() -> None:
        log(f"following {access.server}")
        agent.run(machine)

    held = Conflict("niso kubernetes runs already", f"systemctl status {UNIT}")
    return Following(lambda: systemd.alone(_LOCK, held, work), agent.stop)


def unit_texts(config: str, state_id: str) -> dict[str, str]:
    """Return {path: text} of the agent's systemd unit and of the drop-in that starts it at boot."""
    mark = f"{_MARK}{state_id}"
    words = ("kubernetes", "--kubeconfig", config)
    files = {
        UNIT: systemd.agent(mark, "niso: network policies of Kubernetes", words),
        f"{systemd.WANTED_BY}.d/{UNIT}.conf": [mark, "[Unit]", f"Wants={UNIT}", ""],
    }
    return {os.path.join(UNITS, name): "\n".join(lines) for name, lines in files.items()}


def enable(machine: Machine, config: str) -> bool:
    """Write and start the agent's systemd unit. Return whether the unit changed. Raises Error."""
    config = os.path.abspath(config)
    ApiServer(api_server.read(config))
    units, state_id = machine.processes.units, machine.store.state_id()
    if not units.booted():
        raise Error(
            "systemd did not boot this machine", "start niso kubernetes at boot", "--enable"
        )
    texts = unit_texts(config, state_id)
    systemd.refuse_foreign(units, texts, _MARK + state_id)
    changed = systemd.put(units, texts, machine.report)
    if changed:
        units.stop_unit(UNIT)
    units.start_unit(UNIT)
    return bool(changed)


def disable(machine: Machine) -> bool:
    """Stop and remove the agent's systemd unit. Return False if this state folder has none."""
    units = machine.processes.units
    own = systemd.ours(units, unit_texts("", ""), _MARK + machine.store.state_id())
    if own and units.booted():
        units.stop_unit(UNIT)
    systemd.drop(units, own, machine.report)
    return bool(own)
