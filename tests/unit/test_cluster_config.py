"""Test cluster.toml: what is written is read, and every mistake is named."""

from __future__ import annotations

import os
import pathlib

import pytest
from refusals import refuses

from niso.base import paths
from niso.base.errors import Error, ErrorGroup, flatten
from niso.cluster import config
from niso.cluster.config import Config, MemberStart
from niso.cluster.etcd import Reach


def test_what_is_written_is_read_and_files_are_below_its_folder() -> None:
    assert config.load() is None
    with refuses(Error, hint="niso cluster init makes one; niso cluster join FILE joins one"):
        config.require()
    etcd = Reach(
        ("198.51.100.1:2379", "[2001:db8::1]:2379"), "authority.pem", "host.pem", "host.key"
    )
    for each in (
        Config(
            "a",
            "198.51.100.1",
            etcd._replace(own=True),
            MemberStart(("a=https://198.51.100.1:2380",)),
        ),
        Config("b", "2001:db8::2", Reach(("etcd1:2379",), user_file="/etc/u", prefix="/niso/x/")),
        Config("c", "198.51.100.3", etcd),
    ):
        config.save(each)
        assert config.load() == config.require() == each
        assert os.stat(config.file_path()).st_mode & 0o777 == 0o600
        assert os.stat(paths.cluster_dir()).st_mode & 0o777 == 0o700
    access = each.access()
    assert access.members == etcd.members
    assert access.key == f"{paths.cluster_dir()}/host.key"
    assert access.user_file == ""
    with refuses(Error, "authority.pem", hint="cluster.toml names it", file="authority.pem"):
        each.engine()


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("host = 1", ["host: 1 is a number"]),
        ('[host]\nname = "a"\n[etcd]\nmembers = ["e:1"]', ["missing key host.address"]),
        (
            '[host]\nname = "A B"\naddress = "127.0.0.1"\n[etcd]\n'
            'members = ["x", "::1:2"]\nprefix = "niso"\ncert = "c"',
            [
                'host.name: "A B"',
                'host.address: "127.0.0.1" is not an address of a host',
                'etcd.members: "x" is not an address of etcd (HOST:PORT)',
                'etcd.members: "::1:2" is not an address of etcd',
                'etcd.prefix: "niso" is not a prefix of keys',
                "etcd.cert: cert and key go together",
            ],
        ),
        (
            '[host]\nname = "a"\naddress = "198.51.100.1"\n[etcd]\nmembers = []\nkeys = 1',
            ["etcd.keys = 1: unknown key (did you mean etcd.key?)"],
        ),
        ('[host]\nname = "a"\naddress = "198.51.100.1"\n[etcd]\nmembers = []', ["names no member"]),
        ("[host", ["line 1"]),
    ],
)
def test_every_mistake_is_named_with_the_file(text: str, messages: list[str]) -> None:
    os.makedirs(paths.cluster_dir())
    pathlib.Path(config.file_path()).write_text(text)
    with pytest.raises(Error) as caught:
        config.load()
    assert isinstance(caught.value, ErrorGroup) == (len(flatten(caught.value)) > 1)
    said = [error.message for error in flatten(caught.value)]
    for part in messages:
        assert any(part in each for each in said), said
    assert all(each.startswith(config.file_path()) for each in said)


def test_a_file_of_the_user_is_named_but_never_its_content(tmp_path: pathlib.Path) -> None:
    user = tmp_path / "user"
    user.write_text("only-a-secret\n")
    with refuses(Error, str(user), "NAME:PASSWORD") as caught:
        Config("a", "198.51.100.1", Reach(("e:1",), user_file=str(user))).engine()
    assert "secret" not in caught.value.message
