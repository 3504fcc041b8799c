"""Write images for tests: OCI layouts as skopeo writes them, and bundles as umoci unpacks them."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

REF = "org.opencontainers.image.ref.name"


def blob(folder: pathlib.Path, content: object) -> dict[str, Any]:
    """Write a blob, and return its descriptor."""
    text = json.dumps(content).encode()
    digest = hashlib.sha256(text).hexdigest()
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(text)
    return {"mediaType": "x", "digest": f"sha256:{digest}", "size": len(text)}


def image(folder: pathlib.Path, config: object, **more: Any) -> dict[str, Any]:
    """Write config and manifest of an image, and return the descriptor of its manifest."""
    made = {"architecture": "amd64", "os": "linux", "config": config}
    manifest = {"schemaVersion": 2, "config": blob(folder, made), "layers": []}
    return blob(folder, manifest) | more


def layout(folder: pathlib.Path, config: object) -> pathlib.Path:
    """Write an OCI layout with one image; return its folder."""
    index(folder, image(folder, config))
    return folder


def index(folder: pathlib.Path, *manifests: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": list(manifests)})
    )


def bundle(folder: pathlib.Path, process: dict[str, Any], **more: Any) -> pathlib.Path:
    """Write a bundle with an empty rootfs; return its folder."""
    (folder / "rootfs").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"ociVersion": "1.0.0", "process": process, "root": {"path": "rootfs"}, **more})
    )
    return folder
