"""Test manifest files that cannot be read or parsed, and rootfs folders that are not there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest
from manifests import HEAD, error, loaded, write
from refusals import refuses

from niso.base.errors import Error, ErrorGroup, InvalidInput, NotFound
from niso.cli import main
from niso.manifest import image, toml
from niso.manifest.load import load
from niso.runtime import package


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[package\nname = 1", "line 1, column 9"),
        ("a = 1\nb = = 2", "line 2, column 5"),
        ("a = 1\na = 2", "line 2, column 6: a has a value already"),
        (
            "[a]\n[b.c]\n[a] # x",
            "line 3, column 3: the table [a] is there twice; the first is in line 1",
        ),
        ("[a]\nb = 1\n[a.b]\nc = 1", "line 3, column 5: [a.b] has a value already"),
        ("a = {b = 1}\n[a.c]", "line 2, column 5: the table [a.c] is there twice"),
        ('a = 1\nb = "', "line 2, column 6"),
        ('a = "\x1b[31m"', "line 1, column 6: U+001B is not allowed"),
        ('a = "b\nc = 1', "line 1, column 7: the string does not end in this line"),
        ("a = \u201cb\u201d", "line 1, column 5: \u201c is not a quotation mark of TOML"),
        ("a\u00a0= 1", "line 1, column 2: U+00A0 (no-break space) is not a space of TOML"),
        ("[a]\u00a0", "line 1, column 4: U+00A0 (no-break space) is not a space of TOML"),
        ("\u2003a = 1", "line 1, column 1: U+2003 is not a space of TOML"),
        ("a = b", "line 1, column 5: the value is neither a number, true, false nor in quotes"),
        (b"a = 1\nb = '\xff'", "line 2, column 6: not UTF-8"),
    ],
)
def test_syntax_error_comes_alone_with_line_and_column(
    tmp_path: Path, text: str | bytes, place: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidInput) as caught:
        load(path)
    assert caught.value.message.startswith(f"{path}: {place}")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 20_000, "nested too deep"),
        ("a = " + "9" * 5000, "too many digits"),
        (b"#" * (toml.MAX_BYTES + 1), "larger than"),
    ],
)
def test_file_that_no_manifest_can_be_is_refused(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        load(write(tmp_path, text))


def test_missing_file_and_folder_without_manifest_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (
        tmp_path,
        tmp_path / "none",
        tmp_path / "none" / "manifest.toml",
        tmp_path / "file" / "x",
    ):
        with refuses(NotFound, hint="pass the path of a manifest.toml or of its folder"):
            load(str(path))


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test that waits for ever."""

    def ring(number: int, frame: object) -> None:
        raise AssertionError("still waiting")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_manifest_that_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder" / "manifest.toml").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for name, words in (
        ("folder", "cannot be read: is a directory"),
        ("fifo.toml", "not a regular"),
        ("loop.toml", "be read"),
    ):
        with pytest.raises(Error, match=words):
            load(str(tmp_path / name))


@pytest.mark.usefixtures("alarm")
def test_texts_that_would_take_long_end_soon(tmp_path: Path, capsys: Any) -> None:
    """tomllib alone needs memory that grows with the square of the parts of a key."""
    dots = "a." * 100_000
    for text in (f"{dots}b=1", f"[{dots}b]", f"x={{ {'a . ' * 17}b=1 }}", '"a".' * 90_000 + "b=1"):
        with refuses(InvalidInput, "line 1: a key has more than 16 parts"):
            load(write(tmp_path, text))
    # dots in strings and comments are no keys, and a string without an end takes no longer
    dots = "1." * 5_000
    words = f"\"{dots}\", \"\"\"\n{dots}\n\"\"\", '{dots}', '''\n{dots}'''"
    text = HEAD + f"args = [{words}] # {dots}\n"
    assert len(loaded(tmp_path, text).program.args) == 4
    with refuses(InvalidInput, "line 1"):
        load(write(tmp_path, '"""\\' * 200_000 + "." * 20))
    volumes = "".join(f'volumes.v{n}.mount = "/srv/v{n}"\n' for n in range(3_000))
    write(tmp_path, 'package = { name = "a", version = "1" }\nbinary.entrypoint = "sh"\n' + volumes)
    assert main.run(["validate", str(tmp_path)]) == 0
    write(tmp_path, HEAD + "".join(f"b{n} = 1\n" for n in range(3_000)))
    assert main.run(["validate", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) < 300 and said[-1] == "niso: 2900 more errors"


@pytest.mark.parametrize("path", ["a\x00b", "\ud800.toml", "\x1b[31m.toml"])
def test_strange_path_is_an_error_that_is_safe_to_print(path: str) -> None:
    with pytest.raises(Error) as caught:
        load(path)
    assert caught.value.message.isprintable()


def test_file_of_a_strange_name_is_escaped_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m.toml"
    path.write_text("[package]", encoding="utf-8")
    with pytest.raises(ErrorGroup) as caught:
        load(str(path))
    assert caught.value.message.isprintable()
    assert "\\u001b[31m.toml: missing key package.name (a string)" in caught.value.message


def test_rootfs_must_be_a_folder_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "build" / "rootfs").mkdir(parents=True)
    (package / "file").touch()
    (package / "inside").symlink_to("build/rootfs")
    (package / "outside").symlink_to("..")
    (package / "absolute").symlink_to("/usr")
    (package / "self").symlink_to(".")
    (tmp_path / "package-2").mkdir()
    (package / "sibling").symlink_to("../package-2")

    def with_rootfs(name: str) -> str:
        return HEAD.replace("[binary]", f'rootfs = "{name}"\n[binary]')

    for name in ("build/rootfs", "inside", "build/rootfs/", "/usr", f"{tmp_path}/package-2"):
        assert loaded(package, with_rootfs(name)).program.rootfs == name
    assert loaded(package, with_rootfs("none")).program.rootfs == "none"  # built later
    for name in (
        "file",
        "outside",
        "absolute",
        "self",
        ".",
        "sibling",
        "..",
        "/",
        "/usr/../etc",
        "build/../..",
        "",
    ):
        assert error(package, with_rootfs(name)).key == "package.rootfs"


def test_package_folder_that_is_a_link_has_its_rootfs(tmp_path: Path) -> None:
    (tmp_path / "real" / "rootfs").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "real", HEAD.replace("[binary]", 'rootfs = "rootfs"\n[binary]'))
    assert load(str(tmp_path / "link")).folder == str(tmp_path / "link")


# --- package.oci ----------------------------------------------------------------------------------


REDIS = {
    "User": "redis:redis",
    "ExposedPorts": {"6379/tcp": {}},
    "Env": ["PATH=/usr/local/bin:/bin", "REDIS_VERSION=7", "MODE=image"],
    "Entrypoint": ["docker-entrypoint.sh", "-x"],
    "Cmd": ["redis-server", "${not a variable}"],
    "Volumes": {"/data": {}, "/var/lib/x/": {}},
    "WorkingDir": "/data",
    "StopSignal": "SIGINT",
}
SMALL = '[package]\nname = "api"\nversion = "1"\noci = "images/redis"\n'


def with_image(folder: Path, more: str = "", config: object = REDIS, head: str = SMALL) -> Any:
    images.layout(folder / "images/redis", config)
    return loaded(folder, head + more)


def test_manifest_takes_from_its_image_what_it_does_not_say(tmp_path: Path) -> None:
    spec = with_image(tmp_path)
    program = spec.program
    assert (program.entrypoint, program.working_dir) == ("docker-entrypoint.sh", "/data")
    assert program.args == ("-x", "redis-server", "${not a variable}")
    assert program.environment == {
        "PATH": "/usr/local/bin:/bin",
        "REDIS_VERSION": "7",
        "MODE": "image",
    }
    assert program.user is not None and program.user.text == "redis"
    assert program.stop_signal == "INT" and program.rootfs is None
    assert {one.name: one.mount for one in program.volumes} == {
        "data": "/data",
        "var-lib-x": "/var/lib/x",
    }
    assert spec.network.ports == (), "an exposed port is not a published one"
    assert str(tmp_path / "images/redis") in program.apart
    # the manifest in the copy of the package has the values, and needs no image
    text = package.text(spec).decode()
    (tmp_path / "copy").mkdir()
    copied = loaded(tmp_path / "copy", text)
    assert copied.program._replace(apart=()) == program._replace(apart=())


def test_manifest_goes_before_its_image(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("MODE=file\nLEVEL=file\n")
    more = """
[binary]
args = ["other"]
working_dir = "/"
[environment]
LEVEL = "manifest"
[service]
user = "7"
stop_signal = "TERM"
env_file = "env"
[volumes]
files = { mount = "/data/below" }
"""
    program = with_image(tmp_path, more).program
    assert (program.entrypoint, program.args) == ("docker-entrypoint.sh", ("-x", "other"))
    assert program.environment["MODE"] == "file" and program.environment["LEVEL"] == "manifest"
    assert program.user.text == "7" and program.stop_signal == "TERM"
    assert program.working_dir == "/"
    assert [one.name for one in program.volumes] == ["var-lib-x", "files"]
    only = with_image(tmp_path, '[binary]\nargs = ["y", "z"]\n', {"Cmd": ["x"]}).program
    assert (only.entrypoint, only.args) == ("y", ("z",))
    own = with_image(tmp_path, '[binary]\nentrypoint = "redis-server"\n').program
    assert (own.entrypoint, own.args) == ("redis-server", ())
    # a value that the manifest replaces may be wrong in the image
    bad = {"Cmd": ["x"], "WorkingDir": "y", "User": "a b", "StopSignal": "z", "Env": ["A=\0"]}
    more = '[binary]\nworking_dir = "/"\n[service]\nuser = "7"\nstop_signal = "TERM"\n'
    assert with_image(tmp_path, f'{more}[environment]\nA = "1"\n', bad)


@pytest.mark.parametrize("user", ["", "0", "root", "0:0", "root:root"])
def test_root_of_an_image_is_not_taken_over(tmp_path: Path, user: str) -> None:
    spec = with_image(tmp_path, config={"Cmd": ["x", "y"], "User": user})
    assert spec.program.user is None and spec.program.working_dir == "/"
    assert (spec.program.entrypoint, spec.program.args) == ("x", ("y",))


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        ({}, "", ["has no entrypoint and no command"]),
        ({"Cmd": ["x"]}, "[binary]\nargs = []", ["has no entrypoint"]),
        ({"Cmd": "x"}, "", ["Cmd", "array of strings"]),
        ({"Cmd": ["x"], "StopSignal": "SIGRTMIN+3"}, "", ["service.stop_signal", "SIGRTMIN+3"]),
        ({"Cmd": ["x"], "User": "a b"}, "", ["service.user", "a b"]),
        ({"Cmd": ["x"], "Env": ["A B=1"]}, "", ["environment", "A B"]),
        ([], "", ["is not an object"]),
        ({"Cmd": ["x", "\ud800"]}, "", ["not JSON in UTF-8"]),
        ({"Cmd": ["x", "a\0"]}, "", ["binary.args", "NUL"]),
        ({"Cmd": ["x\x1b[0m"]}, "", ["binary.entrypoint", "unprintable"]),
        ({"Cmd": ["x"], "Env": ["A=\0"]}, "", ["environment", "NUL"]),
        ({"Cmd": ["x"], "WorkingDir": "rel"}, "", ["binary.working_dir", "rel"]),
        ({"Cmd": ["x"], "User": 10**30}, "", ["User", "not a string"]),
        (
            {"Cmd": ["x"], "Volumes": {f"/{n}": {} for n in range(9000)}},
            "",
            ["more than 100 volumes"],
        ),
    ],
)
def test_config_that_cannot_be_used_is_an_error_of_the_key(
    tmp_path: Path, config: object, more: str, words: list[str]
) -> None:
    with refuses(ErrorGroup, *words, key="package.oci"):
        with_image(tmp_path, more, config or ({} if config == {} else [1]))


def test_odd_values_of_an_image_are_taken_exactly_or_left_out(tmp_path: Path) -> None:
    config = {
        "Cmd": ["x", "a\nb\x1b[0m"],
        "Env": ["A=1\n2\r\x1b[0m", "B", "C=x=y"],
        "StopSignal": "15",
        "ExposedPorts": {"80/tcp": {}, "8\x1b[0m": {}, "": {}},
        "Volumes": {"/a/b": {}, "/a-b": {}, "/": {}, "/app": {}, "/../etc/x": {}, "//y//": {}},
    }
    spec = with_image(tmp_path, '[volumes]\na-b = { mount = "/z" }\n', config)
    program = spec.program
    assert (program.args, program.stop_signal) == (("a\nb\x1b[0m",), "TERM")
    assert program.environment == {"A": "1\n2\r\x1b[0m", "B": "", "C": "x=y"}
    mounts = {one.name: one.mount for one in program.volumes}
    expected = {"a-b": "/z", "a-b-2": "/a-b", "a-b-3": "/a/b", "etc-x": "/etc/x", "y": "/y"}
    assert mounts == expected
    assert image.read("images/redis", str(tmp_path)).ports == ("80/tcp",)
    (tmp_path / "copy").mkdir()
    copied = loaded(tmp_path / "copy", package.text(spec).decode())
    assert copied.program._replace(apart=()) == program._replace(apart=())
    with refuses(ErrorGroup, key="binary.args"):
        with_image(tmp_path, '[binary]\nargs = "x"\n')


def test_image_of_a_tag_and_of_this_processor_is_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "images/redis"

    def of(word: str, **more: Any) -> dict[str, Any]:
        return images.image(folder, {"Cmd": [word]}, **more)

    def start(tag: str = "") -> str:
        text = SMALL.replace("redis", f"redis{tag}")
        return str(loaded(tmp_path, text).program.entrypoint)

    own = image._MACHINES[os.uname().machine]
    several = {
        "manifests": [
            of("other", platform={"architecture": "vax"}),
            of("this", platform={"architecture": own}),
        ]
    }
    seven, eight = {images.REF: "7"}, {images.REF: "8"}
    images.index(
        folder,
        of("seven", annotations=seven),
        images.blob(folder, several) | {"annotations": eight},
    )
    assert (start(":7"), start(":8")) == ("seven", "this")
    for tag, words in (("", ["several images", "7", "8"]), (":9", ["9", "7", "8"])):
        with refuses(ErrorGroup, *words, key="package.oci"):
            start(tag)
    images.index(folder, images.blob(folder, {"manifests": [of("x", platform={})]}))
    assert start() == "x"


def test_bundle_has_its_rootfs_too(tmp_path: Path) -> None:
    process = {
        "args": ["redis-server", "-x"],
        "env": ["A=1"],
        "cwd": "/data",
        "user": {"uid": 999, "gid": 999},
    }
    notes = {"org.opencontainers.image.stopSignal": "SIGQUIT"}
    mounts = [
        {"destination": "/data", "type": "tmpfs", "source": "none"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
        {"destination": "/runner", "type": "tmpfs", "source": "none"},  # not below /run
    ]
    images.bundle(tmp_path / "images/redis", process, annotations=notes, mounts=mounts)
    program = loaded(tmp_path, SMALL).program
    assert (program.entrypoint, program.args) == ("redis-server", ("-x",))
    assert program.rootfs == str(tmp_path / "images/redis/rootfs")
    assert program.user.text == "999:999" and program.stop_signal == "QUIT"
    assert [one.mount for one in program.volumes] == ["/data", "/runner"]
    images.bundle(tmp_path / "images/redis", process, root={"path": "../../.."})
    with refuses(ErrorGroup, "root outside", key="package.oci"):
        loaded(tmp_path, SMALL)


def test_damaged_and_foreign_images_are_refused(tmp_path: Path) -> None:
    folder = images.layout(tmp_path / "images/redis", REDIS)
    good = (folder / "index.json").read_text()
    for text in ("", "[]", "{}", '{"manifests": [{"digest": "sha256:../../x"}]}', "[" * 100_000):
        (folder / "index.json").write_text(text)
        with refuses(ErrorGroup, key="package.oci"):
            loaded(tmp_path, SMALL)
    (folder / "index.json").write_text(good)
    assert loaded(tmp_path, SMALL)
    with refuses(InvalidInput, "belongs to", file="images/redis/index.json"):
        image.read("images/redis", str(tmp_path), {os.getuid() + 1})
    for blob in (folder / "blobs/sha256").iterdir():
        content = blob.read_bytes()
        blob.write_bytes(content.replace(b"redis", b"raids").replace(b"layers", b"player"))
        with refuses(ErrorGroup, "damaged", key="package.oci"):
            loaded(tmp_path, SMALL)
        blob.write_bytes(content)
    (folder / "index.json").unlink()
    with refuses(ErrorGroup, "no index.json and no config.json", key="package.oci"):
        loaded(tmp_path, SMALL)
    os.mkfifo(folder / "index.json")
    with refuses(ErrorGroup, "not a regular file"):
        loaded(tmp_path, SMALL)
    with refuses(ErrorGroup, "does not exist", key="package.oci"):
        loaded(tmp_path, SMALL.replace("redis", "none"))
