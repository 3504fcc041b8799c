"""Let the kernel count the bytes of flows for as long as a reader needs them."""

from __future__ import annotations

from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from niso.kernel.nft_meter import Meter
    from niso.see.seen import Key


class Metered:
    """Measures the bytes of flows from its creation until it is closed."""

    def __init__(self) -> None:
        from niso.kernel.nft_meter import Meter

        self._meter: Meter | None
        try:
            self._meter = Meter()
        except KernelError:  # this kernel cannot count them
            self._meter = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop counting. Otherwise the kernel counts until the program ends."""
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.close()

    def _moved(self) -> dict[Key, int] | None:
        """Return each flow's bytes since the last call; None if the kernel cannot count them."""
        return None if self._meter is None else self._meter.read()
