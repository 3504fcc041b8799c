"""Test the lookup of users, entrypoints and folders as a service sees them."""

from __future__ import annotations

import os
import pathlib

import pytest
from fake_world import World
from refusals import refuses

from niso.base.errors import Error, InvalidInput
from niso.manifest import values
from niso.plan.specs import ProcessUser
from niso.runtime import entrypoint as runtime_entrypoint
from niso.runtime.crun import DEFAULT_PATH
from niso.runtime.entrypoint import check_working_dir, resolve_entrypoint

OWN_UID = 1_900_000_007


@pytest.fixture
def rootfs(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "etc" / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nweb:x:33:44:Web:/srv:/bin/sh\nbroken line\nodd:x:many:1::/:\n"
    )
    (root / "etc" / "group").write_text("root:x:0:\nweb:x:44:\nlog:x:55:other,web\nown:x:66:web\n")
    return root


@pytest.fixture
def package(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "package"
    (folder / "bin").mkdir(parents=True)
    return folder


def script(path: pathlib.Path, text: str = "#!/usr/bin/tool\n", mode: int = 0o755) -> None:
    path.write_text(text)
    path.chmod(mode)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, (OWN_UID, OWN_UID, (), "api", "/tmp")),
        ("web", (33, 44, (55, 66), "web", "/srv")),
        ("33", (33, 44, (55, 66), "web", "/srv")),
        ("33:7", (33, 7, (), "web", "/srv")),
        ("1000", (1000, 1000, (), "api", "/tmp")),
        ("1000:2000", (1000, 2000, (), "api", "/tmp")),
        ("0", (0, 0, (), "root", "/root")),
    ],
)
def test_user_is_looked_up_in_the_rootfs(
    rootfs: pathlib.Path, user: str | None, expected: object
) -> None:
    wanted = None if user is None else values.user(user, "service.user")
    assert wanted is None or wanted.text == user
    assert runtime_entrypoint.resolve_user(str(rootfs), wanted, OWN_UID, "api") == expected


@pytest.mark.parametrize("user", ["nobody-here", "odd"])
def test_user_that_cannot_be_names_key_and_value(rootfs: pathlib.Path, user: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        runtime_entrypoint.resolve_user(str(rootfs), ProcessUser(user, None, None), OWN_UID, "api")
    assert caught.value.key == "service.user"
    assert repr(user) in caught.value.message
    assert caught.value.hint


def test_assembled_root_knows_the_users_of_the_host() -> None:
    assert runtime_entrypoint.resolve_user(None, ProcessUser("root", None, None), OWN_UID, "api")[
        :2
    ] == (
        0,
        0,
    )


@pytest.mark.parametrize("kind", ["fifo", "folder", "huge", "loop", "device", "absent"])
def test_user_database_that_is_no_small_file_counts_as_empty(
    rootfs: pathlib.Path, kind: str
) -> None:
    passwd = rootfs / "etc" / "passwd"
    passwd.unlink()
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "folder":
        passwd.mkdir()
    elif kind == "huge":
        with passwd.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "loop":
        passwd.symlink_to("passwd")
    elif kind == "device":
        passwd.symlink_to("/dev/zero")
    with pytest.raises(InvalidInput):
        runtime_entrypoint.resolve_user(str(rootfs), ProcessUser("web", None, None), OWN_UID, "api")


def test_links_of_the_rootfs_lead_nowhere_outside_it(
    rootfs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "outside").write_text("root:x:0:0::/:\nhost:x:1:1::/:\n")
    for target in (
        str(tmp_path / "outside"),
        "../../outside",
        "../../../../../../../" + str(tmp_path / "outside"),
    ):
        passwd = rootfs / "etc" / "passwd"
        passwd.unlink()
        passwd.symlink_to(target)
        assert runtime_entrypoint.read_database(str(rootfs), "passwd") == []
    passwd.unlink()
    (rootfs / "usr" / "passwd").write_text("web:x:33:44::/:/bin/sh\n")
    passwd.symlink_to("/bin/../passwd")
    assert runtime_entrypoint.read_database(str(rootfs), "passwd")[0][0] == "web"


def test_entrypoint_of_the_package_is_below_app(
    rootfs: pathlib.Path, package: pathlib.Path
) -> None:
    script(rootfs / "usr" / "bin" / "tool", "\x7fELF")
    script(package / "bin" / "api", "#! /bin/tool -x\n")
    for name in ("bin/api", "./bin/api", "/app/bin/api"):
        found = resolve_entrypoint(str(package), str(rootfs), name, DEFAULT_PATH)
        assert os.path.normpath(found) == "/app/bin/api"


def test_file_of_the_package_goes_before_the_path(
    rootfs: pathlib.Path, package: pathlib.Path
) -> None:
    script(rootfs / "usr" / "bin" / "tool", "\x7fELF")
    assert resolve_entrypoint(str(package), str(rootfs), "tool", DEFAULT_PATH) == "/usr/bin/tool"
    assert (
        resolve_entrypoint(str(package), str(rootfs), "tool", "/nowhere:relative:/bin")
        == "/bin/tool"
    )
    script(package / "tool", "\x7fELF")
    assert resolve_entrypoint(str(package), str(rootfs), "tool", DEFAULT_PATH) == "/app/tool"


def test_link_of_the_rootfs_into_the_package_is_followed(
    rootfs: pathlib.Path, package: pathlib.Path
) -> None:
    script(package / "bin" / "api", "\x7fELF")
    (rootfs / "usr" / "bin" / "api").symlink_to("/app/bin/../bin/api")
    assert resolve_entrypoint(str(package), str(rootfs), "/bin/api", DEFAULT_PATH) == "/bin/api"


def test_assembled_root_has_the_hosts_usr_and_its_alternatives(package: pathlib.Path) -> None:
    assert resolve_entrypoint(str(package), None, "sh", DEFAULT_PATH) == "/usr/bin/sh"
    assert resolve_entrypoint(str(package), None, "/bin/sh", DEFAULT_PATH) == "/bin/sh"


@pytest.mark.parametrize("entrypoint", ["/etc/init.d/x", "/root/x", "/var/lib", "/etc/passwd"])
def test_assembled_root_has_nothing_else_of_the_host(
    package: pathlib.Path, entrypoint: str
) -> None:
    with pytest.raises(InvalidInput):
        resolve_entrypoint(str(package), None, entrypoint, DEFAULT_PATH)


@pytest.mark.parametrize(
    ("entrypoint", "words"),
    [
        ("bin/none", "does not exist"),
        ("none", "nor on the service's PATH"),
        ("/usr/none", "does not exist"),
        ("bin", "is not a file"),
        ("bin/plain", "is not executable"),
        ("bin/fifo", "is not a file"),
        ("bin/script", "/no/interpreter"),
        ("bin/empty", "names no interpreter"),
        ("bin/loop", "cannot be opened"),
        ("../root/usr/bin/tool", "outside the package"),
        ("bin/plain/x", "does not exist"),
    ],
)
def test_entrypoint_that_cannot_run_is_found_before_the_start(
    rootfs: pathlib.Path, package: pathlib.Path, entrypoint: str, words: str
) -> None:
    script(rootfs / "usr" / "bin" / "tool", "\x7fELF")
    script(package / "bin" / "plain", mode=0o644)
    os.mkfifo(package / "bin" / "fifo")
    script(package / "bin" / "script", "#!/no/interpreter\n")
    script(package / "bin" / "empty", "#!\n")
    (package / "bin" / "loop").symlink_to("loop")
    with pytest.raises(InvalidInput) as caught:
        resolve_entrypoint(str(package), str(rootfs), entrypoint, DEFAULT_PATH)
    assert caught.value.key == "binary.entrypoint"
    assert repr(entrypoint) in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("made", "words", "hint"),
    [
        ("#!/bin/sh\r\n", r"the interpreter '/bin/sh\r', which does not exist inside", r"s/\r$//"),
        (
            "#!/home/me/venv/bin/python\n",
            "/home/me/venv/bin/python, which does not exist inside the service",
            "MODULE",
        ),
        ("#!python3\n", "the interpreter python3, which does not exist inside", "first line of"),
        ("-> python3", "leads to /opt/py/bin/python3.13, which does not exist", "-m venv"),
        (
            "-> ../out/tool",
            "leads to /srv/tools/tool, which does not exist inside",
            "into the package",
        ),
    ],
)
def test_entrypoint_that_needs_a_file_outside_says_which_and_what_to_do(
    package: pathlib.Path, made: str, words: str, hint: str
) -> None:
    """The links are as of a venv that pyenv made; /opt/py and /srv/tools need not exist on the host."""
    (package / "bin" / "python3").symlink_to("python3.13")
    (package / "bin" / "python3.13").symlink_to("/opt/py/bin/python3.13")
    (package / "out").symlink_to("/srv/tools")
    if "/venv/" in made:
        (package / "pyvenv.cfg").write_text("")
    if made.startswith("-> "):
        (package / "bin" / "api").symlink_to(made[3:])
    else:
        (package / "bin" / "api").write_bytes(made.encode())
        (package / "bin" / "api").chmod(0o755)
    with pytest.raises(InvalidInput) as caught:
        resolve_entrypoint(str(package), None, "bin/api", DEFAULT_PATH)
    assert words in caught.value.message and "'bin/api'" in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("entrypoint", ["bin/serve", "bin/python", "{}/python"])
def test_path_of_the_host_that_leads_back_into_usr_is_none_of_the_service(
    package: pathlib.Path, tmp_path: pathlib.Path, entrypoint: str
) -> None:
    """As a venv beside the package: its python is a link to /usr, and exists on the host alone."""
    (tmp_path / "python").symlink_to("/usr/bin/env")
    (package / "bin" / "serve").write_text(f"#!{tmp_path}/python\n")
    (package / "bin" / "serve").chmod(0o755)
    (package / "bin" / "python").symlink_to(f"{tmp_path}/python")
    with refuses(InvalidInput, key="binary.entrypoint"):
        resolve_entrypoint(str(package), None, entrypoint.format(tmp_path), DEFAULT_PATH)
    with pytest.raises(InvalidInput) as caught:
        resolve_entrypoint(str(package), None, f"{package}/bin/serve", DEFAULT_PATH)
    assert caught.value.hint == "the package is /app in the service: bin/serve"
    (package / "here").symlink_to(tmp_path)
    (tmp_path / "bin").symlink_to("/usr/bin")
    with pytest.raises(InvalidInput):
        check_working_dir(str(package), None, "/app/here/bin", ())
    assert resolve_entrypoint(str(package), None, "env", DEFAULT_PATH).endswith("/bin/env")


def test_package_that_links_out_of_itself_is_resolved_in_the_service(
    rootfs: pathlib.Path, package: pathlib.Path
) -> None:
    (package / "bin" / "sh").symlink_to("/bin/sh")
    with refuses(
        InvalidInput,
        key="binary.entrypoint",
        hint="link to a file of the package or of the service's /usr, or copy the file into the package; for a venv: /usr/bin/python3 -m venv",
    ):
        resolve_entrypoint(str(package), str(rootfs), "bin/sh", DEFAULT_PATH)
    assert resolve_entrypoint(str(package), None, "bin/sh", DEFAULT_PATH) == "/app/bin/sh"


def test_working_dir_must_be_a_folder_of_the_service(
    rootfs: pathlib.Path, package: pathlib.Path
) -> None:
    for folder in ("/", "/app", "/app/bin", "/tmp", "/run", "/var/tmp"):
        check_working_dir(str(package), None, folder, ())
        check_working_dir(str(package), str(rootfs), folder, ())
    check_working_dir(str(package), str(rootfs), "/etc", ())
    check_working_dir(str(package), None, "/usr/share", ())
    for root, folder in (
        (None, "/app/none"),
        (None, "/root"),
        (str(rootfs), "/srv"),
        (str(rootfs), "/etc/passwd"),
    ):
        with pytest.raises(InvalidInput) as caught:
            check_working_dir(str(package), root, folder, ())
        assert caught.value.key == "binary.working_dir"


@pytest.mark.parametrize("line", ["#!/bin/tool\0x\n", "#!/bin/tool\targument\n", "#!  /bin/tool"])
def test_interpreter_ends_where_the_kernel_ends_it(
    rootfs: pathlib.Path, package: pathlib.Path, line: str
) -> None:
    script(rootfs / "usr" / "bin" / "tool", "\x7fELF")
    script(package / "bin" / "api", line)
    assert resolve_entrypoint(str(package), str(rootfs), "bin/api", DEFAULT_PATH) == "/app/bin/api"


def test_interpreter_with_a_carriage_return_is_another_file(
    rootfs: pathlib.Path, package: pathlib.Path
) -> None:
    script(rootfs / "usr" / "bin" / "tool", "\x7fELF")
    (package / "bin" / "api").write_bytes(b"#!/bin/tool\r\necho\r\n")
    (package / "bin" / "api").chmod(0o755)
    with refuses(
        InvalidInput,
        "/bin/tool\\r",
        key="binary.entrypoint",
        hint="its lines end with CR LF: sed -i 's/\\r$//' bin/api",
    ):
        resolve_entrypoint(str(package), str(rootfs), "bin/api", DEFAULT_PATH)


def test_ids_that_the_kernel_does_not_have_are_skipped(rootfs: pathlib.Path) -> None:
    many = "9" * 5000  # int() refuses more than 4300 digits
    (rootfs / "etc" / "passwd").write_text(
        f"huge:x:{many}:0::/:/bin/sh\nunset:x:4294967295:0::/:/bin/sh\nok:x:7:8::/srv:/bin/sh\n"
    )
    (rootfs / "etc" / "group").write_text(f"huge:x:{many}:ok\nmore:x:9:ok\n")
    assert runtime_entrypoint.read_database(str(rootfs), "passwd") == [
        ["ok", "x", "7", "8", "", "/srv", "/bin/sh"]
    ]
    assert runtime_entrypoint.resolve_user(
        str(rootfs), ProcessUser("ok", None, None), 1, "demo"
    ) == (
        7,
        8,
        (9,),
        "ok",
        "/srv",
    )
    with pytest.raises(InvalidInput):
        runtime_entrypoint.resolve_user(str(rootfs), ProcessUser("huge", None, None), 1, "demo")


@pytest.mark.parametrize("point", ["/usr/share/app", "/bin/app", "/etc/ssl/certs/app"])
def test_volume_below_a_folder_of_the_host_is_refused(world: World, point: str) -> None:
    package = world.package("api", volumes={"data": {"mount": point}})
    with refuses(InvalidInput, key="volumes.data.mount", file="api/manifest.toml"):
        world.activate(package)


@pytest.mark.parametrize("target", ["/etc", "/proc/sys", "etc/../app", "more"])
def test_volume_whose_path_in_the_rootfs_leads_to_another_mount_is_refused(
    world: World, target: str
) -> None:
    """/etc is the host's, /proc and /app are niso's, and /more is another volume."""
    volumes = {"more": {"mount": "/more"}, "data": {"mount": "/data"}}
    rootfs = {"name": "api", "version": "1", "rootfs": "rootfs"}
    package = world.package(
        "api", package=rootfs, binary={"entrypoint": "/bin/run"}, volumes=volumes
    )
    root = pathlib.Path(package).parent / "rootfs"
    for name in ("proc/sys", "app", "more", "etc", "bin"):
        (root / name).mkdir(parents=True)
    (root / "bin/run").write_bytes(b"\x7fELF")
    (root / "bin/run").chmod(0o755)
    (root / "data").symlink_to(target)
    with refuses(Error, "'/data'", key="volumes.data.mount", file="api/manifest.toml"):
        world.activate(package)
    (root / "data").unlink()
    world.activate(package)  # nothing else is wrong with it


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ({"app": "/"}, "its /app leads to /, which niso's mount at / would hide"),
        ({"run": "/etc"}, "its /run leads to /etc, which niso's mount at /etc would hide"),
        ({"etc": "/tmp/x", "tmp": "y", "y": "."}, "its /tmp leads to /, which"),
        ({"app": "../proc"}, "its /app leads to /proc, which niso's mount at /proc would hide"),
        ({"etc": "/dev"}, "its /etc leads to /dev, which niso's mount at /dev would hide"),
    ],
)
def test_link_that_would_have_a_mount_hide_the_root_is_refused_by_name(
    world: World, links: dict[str, str], words: str
) -> None:
    manifest = world.package("evil", package={"name": "evil", "version": "1", "rootfs": "rootfs"})
    rootfs = world.folder / "evil/rootfs"
    for name in {"bin", "dev", "etc", "proc"} - set(links):
        (rootfs / name).mkdir(parents=True)
    for name, target in links.items():
        (rootfs / name).symlink_to(target)
    assert f"{manifest}: package.rootfs: {words}" in world.refused("activate", manifest)
