"""Identify the rootfs and the host volumes of a service: what counts as the same."""

from __future__ import annotations

import os
import pathlib

import pytest
from fake_world import World
from oci_specs import SPEC
from refusals import refuses

from niso.base import paths
from niso.base.errors import InvalidInput
from niso.plan.specs import MountedVolume, ProcessSpec
from niso.runtime import sources


@pytest.fixture
def spec(tmp_path: pathlib.Path) -> ProcessSpec:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("one")
    (tmp_path / "link").symlink_to("data")
    volumes = tuple(
        MountedVolume(name, f"/{name}", str(tmp_path / name), False, False, None)
        for name in ("data", "file", "link")
    )
    kept = MountedVolume("kept", "/kept", str(tmp_path / "kept"), True, False, None)
    memory = MountedVolume("memory", "/memory", None, False, False, None)
    found = SPEC._replace(rootfs=str(tmp_path / "rootfs"), volumes=(*volumes, kept, memory))
    return sources.recorded(found)


def wrong(spec: ProcessSpec) -> dict[str | None, str]:
    return {error.key: error.reason for error in sources.problems(spec)}


def test_links_are_resolved_once_and_named_volumes_are_left_alone(
    spec: ProcessSpec, tmp_path: pathlib.Path
) -> None:
    data, file, link, kept, memory = spec.volumes
    assert link.source == data.source and link.identity == data.identity
    assert file.identity is not None and file.identity.inode == 0
    assert kept.identity is memory.identity is None
    assert sources.recorded(spec) == spec and wrong(spec) == {}
    (tmp_path / "link").unlink()
    assert wrong(spec) == {}


def test_file_may_be_replaced_and_a_folder_of_others_not(
    spec: ProcessSpec, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").rename(tmp_path / "file")
    assert wrong(spec) == {}
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    (tmp_path / "data").rename(tmp_path / "was")
    (tmp_path / "data").write_text("a file")
    (tmp_path / "rootfs").rename(tmp_path / "old")
    (tmp_path / "rootfs").mkdir()
    said = wrong(spec)
    assert "is another folder, it was a file" in said["volumes.file.host"]
    assert "is not a folder, it was the folder with inode" in said["volumes.data.host"]
    assert "is another folder, it was the folder" in said["package.rootfs"]


def test_device_counts_within_one_boot(spec: ProcessSpec) -> None:
    was = spec.rootfs_identity
    assert was is not None
    moved = was._replace(device=was.device + 1)
    assert "package.rootfs" in wrong(spec._replace(rootfs_identity=moved))
    assert wrong(spec._replace(rootfs_identity=moved._replace(boot="another"))) == {}
    other = moved._replace(boot="another", inode=was.inode + 1)
    assert "package.rootfs" in wrong(spec._replace(rootfs_identity=other))


def test_path_through_a_link_is_refused_wherever_the_link_is(
    spec: ProcessSpec, tmp_path: pathlib.Path
) -> None:
    outside = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    tmp_path.symlink_to(outside)
    assert {"package.rootfs", "volumes.data.host", "volumes.file.host"} <= wrong(spec).keys()
    assert all("leads through a symlink" in words for words in wrong(spec).values())


def test_folder_that_others_can_change_is_found(tmp_path: pathlib.Path) -> None:
    own = {0, os.geteuid()}
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert sources.changeable(str(inner), own) is None
    (tmp_path / "a").chmod(0o757)
    assert sources.changeable(str(inner), own) == str(tmp_path / "a")
    (tmp_path / "a").chmod(0o1757)
    assert sources.changeable(str(inner), own) is None
    assert sources.changeable(str(inner), own, by_new_names=True) == str(tmp_path / "a")
    assert sources.changeable(str(inner), {12345}) == str(tmp_path / "a")
    if os.geteuid() == 0:
        for group, found in ((0, None), (60, str(tmp_path / "a"))):
            os.chown(tmp_path / "a", 0, group)
            (tmp_path / "a").chmod(0o775)
            assert sources.changeable(str(inner), own) == found


def test_rootfs_with_the_data_of_niso_itself_is_refused(world: World) -> None:
    for folder in (paths.state_dir(), os.path.dirname(paths.state_dir())):
        with refuses(InvalidInput, "niso's own files", key="package.rootfs"):
            world.activate(
                world.package("api", package={"name": "api", "version": "1", "rootfs": folder})
            )
