"""Define the row of a service."""

from __future__ import annotations

import os

from niso.base import paths
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.store.sqlite import decoded

if TYPE_CHECKING:
    from niso.plan.process_spec import ProcessSpec
    from niso.plan.service_spec import ServiceSpec


class ServiceRow(NamedTuple):
    """A known service; the fields are the columns of its table."""

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
    created_at: float  # seconds since 1970
    activated_at: float | None
    mode: str = "bridge"  # or host, none, share
    provider: str | None = None  # with mode share: the service whose namespace it joins
    enabled: bool = False  # activated at boot

    @property
    def service(self) -> ServiceSpec | None:
        """Return the ServiceSpec of the last activation; None if the row is damaged."""
        from niso.store import specs  # not loaded by commands that only list

        return specs.service(self.manifest)

    @property
    def process(self) -> ProcessSpec | None:
        """Return the ProcessSpec of the last activation; None if the row is damaged."""
        from niso.store import specs

        return specs.process(self.spec)

    def require_service(self) -> ServiceSpec:
        """Return `service`. Raises Error if the row is damaged."""
        if (spec := self.service) is None:
            raise self.damaged()
        return spec

    def require_process(self) -> ProcessSpec:
        """Return `process`. Raises Error if the row is damaged."""
        if (spec := self.process) is None:
            raise self.damaged()
        return spec

    def damaged(self) -> Error:
        """Return the error for a damaged row."""
        message = f"service {self.name!r}: its record in the store is damaged"
        return Error(message, f"niso activate {self.manifest_path}, or niso remove {self.name}")


def service_row(row: tuple[object, ...]) -> ServiceRow:
    """Return a row of the table as a ServiceRow."""
    fields = ServiceRow(*row)  # type: ignore[arg-type]
    package = fields.package
    if package.endswith(f"/packages/{fields.name}/{fields.fingerprint}"):
        # the state folder may have been moved
        package = os.path.join(paths.package_dir(fields.name), fields.fingerprint)
    return fields._replace(
        package=package,
        active=bool(fields.active),
        networks=tuple(decoded(str(fields.networks))),
        enabled=bool(fields.enabled),
    )
