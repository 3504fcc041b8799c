"""The row of a service."""

from __future__ import annotations

from niso.base.errors import NisoError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.store.sqlite import decoded

if TYPE_CHECKING:
    from niso.plan.process_spec import ProcessSpec
    from niso.plan.service_spec import ServiceSpec


class ServiceRow(NamedTuple):
    name: str
    manifest_path: str
    manifest: str  # JSON of `service`
    rootfs: str | None
    package: str
    fingerprint: str
    uid: int
    active: bool
    generation: int
    networks: tuple[str, ...]
    spec: str  # JSON of `process`
    created_at: float
    activated_at: float | None
    mode: str = "bridge"  # or host, none, share
    provider: str | None = None  # of mode share: the service whose namespace it is in
    enabled: bool = False  # activated at boot

    @property
    def service(self) -> ServiceSpec | None:
        """What the manifest of the last activation asks for; None where the row is damaged."""
        from niso.store import specs  # which commands that only list do without

        return specs.service(self.manifest)

    @property
    def process(self) -> ProcessSpec | None:
        """The process of the last activation; None where the row is damaged."""
        from niso.store import specs

        return specs.process(self.spec)

    def require_service(self) -> ServiceSpec:
        """As `service`. Raises NisoError where the row is damaged."""
        if (found := self.service) is None:
            raise self.damaged()
        return found

    def require_process(self) -> ProcessSpec:
        """As `process`. Raises NisoError where the row is damaged."""
        if (found := self.process) is None:
            raise self.damaged()
        return found

    def damaged(self) -> NisoError:
        """The error for a damaged row, where nothing can be done without it."""
        words = f"service {self.name!r}: what the store has of it cannot be understood"
        return NisoError(words, f"niso activate {self.manifest_path}, or niso remove {self.name}")


def service_row(row: tuple[object, ...]) -> ServiceRow:
    """A row of the table as the store has it."""
    fields = ServiceRow(*row)  # type: ignore[arg-type]
    return fields._replace(
        active=bool(fields.active),
        networks=tuple(decoded(str(fields.networks))),
        enabled=bool(fields.enabled),
    )
