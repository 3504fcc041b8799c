"""Define the counters of a service."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple


class Stats(NamedTuple):
    """Counters of an active service; a value is None if the kernel lacks the counting object."""

    service: str
    """the service's name"""
    in_packets: int | None
    """packets received"""
    in_bytes: int | None
    """bytes received"""
    in_drops: int | None
    """packets dropped by its ingress policy"""
    out_packets: int | None
    """packets sent"""
    out_bytes: int | None
    """bytes sent"""
    out_drops: int | None
    """packets dropped by its egress policy"""
    foreign: int | None
    """frames dropped for a foreign address or type"""
    in_audits: int | None
    """packets that its ingress policy would have dropped; null unless it is in audit"""
    out_audits: int | None
    """packets that its egress policy would have dropped; null unless it is in audit"""
