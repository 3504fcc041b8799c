"""Make packages and read their copies."""

from __future__ import annotations

from pathlib import Path

from niso.base import paths
from niso.runtime import package
from niso.runtime.package import Contents


def small_package(folder: Path) -> Path:
    """Make a package api below a folder: a program, and a file that only its owner may read."""
    made = folder / "api"
    (made / "bin").mkdir(parents=True)
    (made / "manifest.toml").write_text("[package]\n")
    (made / "bin" / "api").write_text("#!/bin/sh\n")
    (made / "bin" / "api").chmod(0o750)
    (made / "secret").write_text("x")
    (made / "secret").chmod(0o600)
    return made


def fingerprint(folder: str, rootfs: str | None, manifest: str | None = None) -> str:
    return package.fingerprint(folder, rootfs, Contents("api"), manifest)


def copy_to(
    service: str, folder: str, rootfs: str | None, digest: str, manifest: str | None = None
) -> str:
    return package.copy(service, folder, rootfs, digest, Contents(service), manifest, None)


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def left_over() -> list[str]:
    """Return what lies where copies are kept."""
    top = Path(paths.package_dir("api"))
    return names_below(top) if top.exists() else []
