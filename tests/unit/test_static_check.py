"""`niso validate` refuses what an activation refuses on any host, and nothing that depends on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_world import World

import niso
from niso.base.errors import Error, flatten
from niso.change import stacks
from niso.look import stack_members

SERVICE = '[services.{}]\nbinary = {{ entrypoint = "/bin/true" }}\n'
BACK = '[networks.back]\nsubnet = "10.99.7.0/24"\n'


def written(folder: Path, top: str = "", head: str = "", **networks: str) -> Path:
    """Write a stack of services with these tables [services.NAME.network]."""
    text = f'[stack]\nname = "shop"\n{head}\n{top}\n'
    for name, keys in networks.items():
        text += "" if ".binary" in keys else SERVICE.format(name)
        text += keys if keys.startswith("[") else f"[services.{name}.network]\n{keys}"
        text += "\n"
    (folder / "stack.toml").write_text(text)
    return folder / "stack.toml"


def refused(file: Path) -> list[tuple[str, str]]:
    with pytest.raises(Error) as caught:
        niso.validate(file)
    return [(each.key or "", f"{each.reason}; {each.hint}") for each in flatten(caught.value)]


def refused_by_activation(world: World, file: Path) -> list[tuple[str, str]]:
    with pytest.raises(Error) as caught:
        stacks.up(world.machine, stack_members.load(str(file)), 5.0, True, False)
    return [(each.key or "", f"{each.reason}; {each.hint}") for each in flatten(caught.value)]


WRONG = {
    "host port twice": (
        {"a": 'ports = ["80:80"]', "b": 'ports = ["8080:80", "127.0.0.1:80:80"]'},
        [("services.b.network.ports[1]", "127.0.0.1:80/tcp is published by 'a' as 80/tcp")],
    ),
    "range over a port": (
        {"a": 'ports = ["8000-8010:8000-8010"]', "b": 'ports = ["8005:80"]'},
        [("services.b.network.ports[0]", "8005/tcp is published by 'a' as 8000-8010/tcp")],
    ),
    "port of a family that the network lacks": (
        {"top": BACK, "a": 'network = "back"\nports = ["[fd00::1]:80:80"]'},
        [("services.a.network.ports[0]", "has no IPv6 subnet")],
    ),
    "address twice": (
        {
            "top": BACK,
            "a": 'network = "back"\nip = "10.99.7.9"',
            "b": 'network = "back"\nip = "10.99.7.9"',
        },
        [("services.b.network.ip", "10.99.7.9 is leased to service 'a'")],
    ),
    "address of another network": (
        {"top": BACK, "a": 'network = "back"\nip = "10.98.7.9"'},
        [("services.a.network.ip", "10.98.7.9 is not in 10.99.7.0/24")],
    ),
    "address of the gateway": (
        {"top": BACK + 'gateway = "10.99.7.9"\n', "a": 'network = "back"\nip = "10.99.7.9"'},
        [("services.a.network.ip", "it is the gateway")],
    ),
    "address of a family that the network lacks": (
        {"top": "[networks.back]\n", "a": 'network = "back"\nip = ["10.99.7.9", "fd00::9"]'},
        [("services.a.network.ip", "no IPv6 subnet for fd00::9")],
    ),
    "subnets that overlap": (
        {
            "top": BACK + '[networks.front]\nsubnet = "10.99.0.0/21"\n',
            "a": 'networks = ["back", "front"]',
        },
        [("networks.front", "subnet 10.99.0.0/21 overlaps 10.99.7.0/24 of network 'back'")],
    ),
    "more services than addresses": (
        {"top": '[networks.back]\nsubnet = "10.99.7.0/30"\n'}
        | {name: 'network = "back"' for name in ("a", "b")},
        [("services.b", "network 'back' (10.99.7.0/30) has no free address")],
    ),
    "hostname and alias of one network": (
        {"a": 'hostname = "db"', "b": 'aliases = ["db"]'},
        [("services.b.network.aliases", "the name 'db' is already used by service 'a'")],
    ),
    "name of one that shares": (
        {"a": "", "b": 'mode = "share"\nshare = "a"', "c": 'aliases = ["b"]'},
        [("services.b", "the name 'b' is already used by service 'c'")],
    ),
    "shares one without a namespace": (
        {"a": 'mode = "host"', "b": 'mode = "share"\nshare = "a"'},
        [("services.b.network.share", "has mode host and no network namespace of its own")],
    ),
    "publishes ports of no network": (
        {"a": 'mode = "none"', "b": 'mode = "share"\nshare = "a"\nports = ["80:80"]'},
        [("services.b.network.ports[0]", "it cannot be reached")],
    ),
    "policy of a service of the host's network": (
        {"a": 'mode = "host"', "b": 'policy = { allow_from = ["a"] }'},
        [("services.b.network.policy.allow_from[0]", "names a service of mode host")],
    ),
    "ambiguous name in a policy": (
        {
            "a": 'network = "x"\naliases = ["db"]',
            "b": 'network = "y"\naliases = ["db"]',
            "c": 'networks = ["x", "y"]\npolicy = { allow_from = ["db"] }',
        },
        [
            (
                "services.c.network.policy.allow_from[0]",
                "is ambiguous, it could be 'a' (network x), 'b' (network y)",
            )
        ],
    ),
    "volumes in what is the host's, and over another": (
        {
            "a": """[services.a.volumes]
x = { mount = "/usr/x" }
y = { mount = "/run/lock/y" }
z = { mount = "/var/lock/y", tmpfs = true }""",
            "b": 'ports = ["80:80"]',
        },
        [
            ("services.a.volumes.x.mount", "without a rootfs, /usr is the host's, read-only"),
            ("services.a.volumes.z.mount", "it is /run/lock/y, which overlaps with /run/lock/y"),
        ],
    ),
    "audit that has ended": (
        {"a": 'policy = { mode = "audit", audit_until = 2020-01-01, allow_from = [] }'},
        [("services.a.network.policy.audit_until", "has passed")],
    ),
    "audit that is too long": (
        {"a": 'policy = { mode = "audit", audit_until = 2099-01-01, allow_from = [] }'},
        [("services.a.network.policy.audit_until", "is more than 14 days ahead")],
    ),
    "several services": (
        {"a": 'ports = ["80:80"]', "b": 'ports = ["80:80"]', "c": 'ports = ["80:80"]'},
        [
            ("services.b.network.ports[0]", "is published by 'a'"),
            ("services.c.network.ports[0]", "is published by 'a'"),
        ],
    ),
}


@pytest.mark.parametrize("prefix", ["", "prefix = true"], ids=["plain", "prefix"])
@pytest.mark.parametrize("case", WRONG)
def test_check_refuses_what_activation_refuses(case: str, prefix: str, world: World) -> None:
    networks, expected = WRONG[case]
    file = written(world.folder, head=prefix, **networks)
    wrong = refused(file)
    assert wrong == refused_by_activation(world, file)
    if not prefix:  # else names and keys are other ones
        assert [key for key, _ in wrong] == [key for key, _ in expected]
        for (_, text), (_, part) in zip(wrong, expected, strict=True):
            assert part in text


RIGHT = {
    "addresses of networks that the host may have": {
        "top": "[networks.back]\nipv6 = true\n"
        + '[networks.half]\nsubnet = "10.99.8.0/24"\nipv6 = true\n',
        "a": 'ip = "10.99.0.1"\nports = ["[fd00::1]:80:80"]',
        "b": 'network = "other"\nip = ["8.8.8.8", "2001:db8::5"]',
        "c": 'networks = ["other", "half"]\nip = { half = ["10.99.8.9", "fd00:9::9"] }',
        "d": 'networks = ["back", "other"]\nip = { back = ["10.1.2.3", "fd01::9"] }',
        "e": 'network = "back"',
    },
    "networks without a subnet": {
        "top": "[networks.back]\nmtu = 1400\nobserve = false\nmulticast = true\n"
        + '[networks.front]\ngateway = "10.99.1.254"\n'
        + '[networks.half]\nsubnet = "10.99.8.0/24"\nipv6 = true\nmtu = 1400\n'
        + 'gateway = "10.99.8.9"\n',
        "a": 'networks = ["back", "front", "half"]',
    },
    "subnets of the machine": {
        "top": '[networks.back]\nsubnet = "192.0.2.0/24"\nallow_public = true\n',
        "a": 'network = "back"',
    },
    "networks that span hosts": {
        "top": BACK + "span = true\n",
        "a": 'network = "back"\nip = "10.99.7.9"',
    },
    "services of the host": {
        "a": 'mode = "share"\nshare = "db"\nports = ["80:80"]',
        "b": 'mode = "share"\nshare = "db"\nports = ["[::]:81:81"]',
        "c": 'policy = { allow_from = ["nobody", "network:nowhere"], egress.allow = ["example.com:443"] }',
    },
    "one host port at two addresses": {
        "a": 'ports = ["127.0.0.1:80:80", "53:53/udp"]',
        "b": 'ports = ["127.0.0.2:80:80", "53:53/tcp"]',
    },
    "files of the host": {
        "a": """[services.a.volumes]
x = { mount = "/etc/ssl/x", host = "/nowhere" }
[services.a.secrets]
key = { file = "/nowhere/key" }""",
        "b": "[services.b.binary]\nentrypoint = 'no-such-program'",
    },
    "free host ports beside named ones": {
        "a": 'ports = [":80"]',
        "b": 'ports = ["20000:80"]',
        "c": 'mode = "share"\nshare = "b"\nports = ["20001:81", ":82"]',
    },
    "one name on two networks": {
        "a": 'network = "x"\nhostname = "db"',
        "b": 'network = "y"\nhostname = "db"',
    },
}


@pytest.mark.parametrize("case", RIGHT)
def test_check_leaves_open_what_a_host_may_know_better(case: str, tmp_path: Path) -> None:
    names = [name for name in RIGHT[case] if name != "top"]
    assert niso.validate(written(tmp_path, **RIGHT[case]))[0].services == tuple(names)


def test_check_refuses_missing_files_of_the_stack(tmp_path: Path) -> None:
    files = """[services.a.volumes]
x = { mount = "/etc/x", host = "./x.conf", mode = "ro" }
[services.a.secrets]
key = { file = "./key" }"""
    file = written(tmp_path, a=files)
    keys = ["services.a.secrets.key.file", "services.a.volumes.x.host"]
    found = refused(file)
    assert [key for key, _ in found] == keys
    assert all(text.startswith("does not exist; ") for _, text in found)
    for name in ("x.conf", "key"):
        (tmp_path / name).touch()
    niso.validate(file)


def test_wrong_dependency_does_not_hide_other_errors(tmp_path: Path) -> None:
    file = written(tmp_path, a='ports = ["80:80"]', b='ports = ["80:80"]')
    text = file.read_text().replace("[services.a]", '[services.a]\ndepends_on = ["nope"]')
    file.write_text(text)
    keys = ["services.a.depends_on[0]", "services.a.network.ports[0]"]
    assert [key for key, _ in refused(file)] == keys


def test_missing_rootfs_is_a_hint_for_check_and_an_error_for_activation(world: World) -> None:
    rootfs = """[services.a.package]
rootfs = "rootfs"
"""
    file = written(world.folder, a=rootfs)
    (valid,) = niso.validate(file)
    assert f"a: the rootfs {world.folder}/rootfs does not exist yet" in valid.hints
    ((key, reason),) = refused_by_activation(world, file)
    assert key == "services.a.package.rootfs" and reason.startswith("does not exist")


def test_check_of_one_manifest_refuses_a_share_of_itself(tmp_path: Path) -> None:
    file = tmp_path / "manifest.toml"
    file.write_text(
        '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "true"\n'
        '[network]\nmode = "share"\nshare = "api"\n'
    )
    assert "the service itself" in refused(file)[0][1]


def test_check_reads_and_writes_nothing_of_the_machine(tmp_path: Path) -> None:
    """As nobody, with a state folder that is a file, without /run."""
    (tmp_path / "state").write_text("")
    written(tmp_path, a='ports = ["80:80"]', b='ports = ["80:80"]')
    environment = {
        **os.environ,
        "NISO_STATE_DIR": f"{tmp_path}/state",
        "NISO_RUN_DIR": f"{tmp_path}/run",
        "LC_ALL": "C",
    }
    os.chmod(tmp_path, 0o755)
    command = [str(Path(sys.executable).with_name("niso")), "validate", "stack.toml"]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "stack.toml:12: services.b.network.ports[0]: host port 80/tcp" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["stack.toml", "state"]
