"""Apply Kubernetes' network policies: ``host.kubernetes``."""

from __future__ import annotations

from niso.api.guard import guarded, path
from niso.api.service_results import Marked
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from niso.api.session import Session
    from niso.commands.agents import Following

KUBECONFIG = "/etc/niso/kubeconfig"


class Kubernetes:
    """The agent that applies Kubernetes' network policies to the pods of this node."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @guarded
    def follow(
        self, log: Callable[[str], None], kubeconfig: str | os.PathLike[str] = KUBECONFIG
    ) -> Following:
        """Return the agent: ``run()`` follows the API server until ``stop()`` is called.

        ``log`` takes lines of text. Raises Error if the kubeconfig is unusable.
        """
        from niso.commands import kubernetes

        config = path(kubeconfig, "--kubeconfig")
        return kubernetes.follow(self.session.machine(create=True), config, log)

    @guarded
    def enable(self, kubeconfig: str | os.PathLike[str] = KUBECONFIG) -> Marked:
        """Let systemd run the agent, now and at boot. Raises Error without systemd, Conflict."""
        from niso.commands import kubernetes

        config = path(kubeconfig, "--kubeconfig")
        machine = self.session.machine_for_change(create=True)
        changed = kubernetes.enable(machine, config, self.session.report)
        return _marked(changed)

    @guarded
    def disable(self) -> Marked:
        """Stop the agent and do not start it at boot. Pods keep their present policies."""
        from niso.commands import kubernetes

        return _marked(kubernetes.disable(self.session.machine_for_change(), self.session.report))


def _marked(changed: bool) -> Marked:
    from niso.commands import kubernetes
    from niso.runtime.units import UNITS

    return Marked(kubernetes.UNIT, changed, f"{UNITS}/{kubernetes.UNIT}")
