"""Test which folders a lab shows, how it maps ids without root, and what it says if it cannot."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from niso.base.errors import Error
from niso.lab import lab_host, user_namespace

CHECKOUT = Path(__file__).resolve().parents[2]


def test_lab_that_covers_nisos_checkout_still_sees_all_of_it() -> None:
    assert str(CHECKOUT) in lab_host._reachable("/", [str(CHECKOUT.parent)], unprivileged=False)


def test_lab_without_root_maps_ids_of_the_system_nobody_and_services() -> None:
    assert user_namespace._spread([(100_000, 65_536)]) == [
        (1, 100_000, 59_999),
        (65_534, 159_999, 1),
        (1_900_000_000, 160_000, 5_536),
    ]
    assert user_namespace._spread([(7, 40_000), (90_000, 0), (200_000, 30_000)]) == [
        (1, 7, 40_000),
        (40_001, 200_000, 19_999),
        (65_534, 219_999, 1),
        (1_900_000_000, 220_000, 10_000),
    ]
    with pytest.raises(Error, match="needs 65,536 subordinate uids and gids, and you have 65,000"):
        user_namespace._spread([(100_000, 65_000)])


@pytest.mark.parametrize(
    ("files", "number", "why", "hint"),
    [
        ({"kernel/unprivileged_userns_clone": "0"}, errno.EPERM, "_clone = 0 forbids", "clone=1"),
        (
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            errno.EPERM,
            "kernel.apparmor_restrict_unprivileged_userns = 1 forbids",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({}, errno.ENOSPC, "user.max_user_namespaces allows no more of", "as root"),
        ({"/proc/self/status": "Name:\tx\nSeccomp:\t2"}, errno.EPERM, "seccomp", "unconfined"),
        ({"kernel/unprivileged_userns_clone": "1"}, errno.EPERM, "chroot", "as root"),
        ({}, errno.EINVAL, "Invalid argument", "as root"),
    ],
)
def test_error_names_the_setting_that_forbids_user_namespaces(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], number: int, why: str, hint: str
) -> None:
    monkeypatch.setattr(
        user_namespace, "_read", lambda path: files.get(path.removeprefix("/proc/sys/"), "")
    )
    error = user_namespace._forbidden(number)
    assert why in error.message and hint in (error.hint or "")
