"""Manage named volumes (``host.volumes``)."""

from __future__ import annotations

from niso.base.named_tuples import TYPE_CHECKING
from niso.look import named_volumes
from niso.look.session import ApiPart, as_usage, texts

if TYPE_CHECKING:
    import niso


class Volumes(ApiPart):
    """The API of named volumes: ``host.volumes``. A volume is given as ``SERVICE/NAME``."""

    def list(self, *names: str) -> tuple[niso.VolumeLine, ...]:
        """Return the named volumes of this host, or only those of ``names``.

        A name is a service or ``SERVICE/NAME``. To find the sizes, all folders of the volumes are
        read. Raises NotFound.
        """
        wanted = texts(names, "names")
        return tuple(named_volumes.lines(self.session.store(), wanted))

    def remove(self, *names: str) -> tuple[niso.VolumeLine, ...]:
        """Delete volumes with their content, and return a description of each.

        Raises NotFound, UsageError, and Conflict if the service of a volume is active.
        """
        from niso.change import deactivate

        wanted = texts(names, "names")
        pairs = as_usage(lambda: [named_volumes.split(name) for name in wanted])
        machine = self.session.machine_for_change()
        found = named_volumes.lines(machine.store, wanted) if wanted else []
        deactivate.remove_volumes(machine, pairs, self.session.report)
        return tuple(found)
