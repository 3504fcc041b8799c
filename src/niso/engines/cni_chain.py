"""Merge niso's result with those of other plugins in a list (CNI SPEC.md, Success).

The runtime passes ``prevResult``: for ADD the result of the plugins before niso, for CHECK and DEL
that of the whole list.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.engines.cni import WRONG_CONFIG, Failure

if TYPE_CHECKING:
    from typing import Any

    from niso.engines.cni_calls import Call
    from niso.store.attached_rows import Attached
    from niso.store.store import Store

_KEY = "prevResult"
_LISTS = ("interfaces", "ips", "routes")
_HINT = "look at the plugins before niso-cni in the list"


def require_free(store: Store, call: Call, same: Attached | None) -> None:
    """Raise Failure if a plugin before niso in the list has created the interface.

    niso's own attachment may have it: after ADD of the same container again, or twice in a list.
    """
    own = store.attachments.links(same.service) if same is not None else ()
    is_own = any(link.interface == call.interface for link in own)
    interfaces = _previous(call)["interfaces"]
    is_made = any(x.get("sandbox") and x.get("name") == call.interface for x in interfaces)
    if is_made and not is_own:
        raise Failure(
            WRONG_CONFIG,
            f"another plugin of this list has made {call.interface}, and niso makes it itself",
            "remove that plugin from the list, or give it a list and an interface of its own",
        )


def merged(call: Call, own: dict[str, Any]) -> dict[str, Any]:
    """Merge niso's result into the previous one, without duplicates. Raises Failure."""
    before = _previous(call)
    interfaces = list(before["interfaces"])
    places = []
    for interface in own["interfaces"]:
        if interface not in interfaces:
            interfaces.append(interface)
        places.append(interfaces.index(interface))
    ips = [{**ip, "interface": places[ip["interface"]]} for ip in own["ips"]]
    return {
        **before,
        "cniVersion": own["cniVersion"],
        "interfaces": interfaces,
        "ips": [*before["ips"], *(ip for ip in ips if ip not in before["ips"])],
        "routes": [*before["routes"], *(r for r in own["routes"] if r not in before["routes"])],
        "dns": own["dns"] or before.get("dns", {}),
    }


def addresses(call: Call) -> set[str]:
    """Return the interface's addresses in the list's result. Raises Failure."""
    if call.config.get(_KEY) is None:
        return set()
    previous = _previous(call)
    of_container = [
        place
        for place, interface in enumerate(previous["interfaces"])
        if interface.get("sandbox") and interface.get("name") == call.interface
    ]
    return {
        str(ip.get("address", "")).partition("/")[0]
        for ip in previous["ips"]
        if ip.get("interface") in of_container
    }


def _previous(call: Call) -> dict[str, Any]:
    """Return ``prevResult``, where missing or null lists become empty ones. Raises Failure."""
    given = call.config[_KEY]
    if not isinstance(given, dict):
        raise Failure(WRONG_CONFIG, f"{_KEY} is not an object", _HINT)
    previous = {**given, **{key: given.get(key) or [] for key in _LISTS}}
    for key in _LISTS:
        value = previous[key]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise Failure(WRONG_CONFIG, f"{_KEY}.{key} is not a list of objects", _HINT)
    return previous
