"""Run the agent that applies Kubernetes' network policies: ``host.kubernetes``."""

from __future__ import annotations

from niso.base.named_tuples import TYPE_CHECKING
from niso.change.boot import Marked
from niso.engines import pod_agent
from niso.look.session import ApiPart, path
from niso.runtime.units import UNITS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from niso.runtime.units import Following


KUBECONFIG = "/etc/niso/kubeconfig"


class Kubernetes(ApiPart):
    """The API of the agent that applies Kubernetes' network policies to the pods of this node."""

    def follow(
        self, log: Callable[[str], None], kubeconfig: str | os.PathLike[str] = KUBECONFIG
    ) -> Following:
        """Return the agent, which watches the Kubernetes API server and applies network policies.

        The agent's ``run()`` returns after ``stop()`` is called. ``log`` is called with each line
        to log. Raises Error if the kubeconfig is unusable.
        """
        config = path(kubeconfig, "--kubeconfig")
        return pod_agent.follow(self.session.machine(create=True), config, log)

    def enable(self, kubeconfig: str | os.PathLike[str] = KUBECONFIG) -> Marked:
        """Run the agent with systemd now and at boot. Raises Conflict, or Error without systemd."""
        config = path(kubeconfig, "--kubeconfig")
        machine = self.session.machine_for_change(create=True)
        return _marked(pod_agent.enable(machine, config))

    def disable(self) -> Marked:
        """Stop the agent, and no longer start it at boot. The pods' policies do not change."""
        return _marked(pod_agent.disable(self.session.machine_for_change()))


def _marked(changed: bool) -> Marked:
    return Marked(pod_agent.UNIT, changed, f"{UNITS}/{pod_agent.UNIT}")
