"""Test the administrator's policies for attachments: what is read, and what two policies allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from niso.base.errors import Error, InvalidInput
from niso.change.attach import both, combined
from niso.manifest.policy import about, parse
from niso.plan.records import Policy

BOX: dict[str, Any] = {
    "name": "box",
    "networks": ("backend",),
    "owner": "podman",
    "labels": {"pod_namespace": "shop"},
}
OPEN = Policy()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NISO_POLICY_DIR", str(tmp_path))
    tmp_path.chmod(0o755)
    return tmp_path


def write(folder: Path, text: str, name: str = "a.toml") -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o644)


def texts(policy: Policy) -> list[list[str] | None]:
    def shown(entries: object) -> list[str] | None:
        if entries is None:
            return None
        return [f"{e.peer.name}:{e.first}-{e.last}/{e.proto}" for e in entries]  # type: ignore[attr-defined]

    return [shown(policy.allow_from), shown(policy.deny_from), shown(policy.egress_allow)]


def whole(**changes: Any) -> Policy:
    return combined(about(**(BOX | changes)))


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        (None, None, None),
        (None, ["web"], ["web:0-65535/"]),
        (["web"], [], []),
        (["web:80-90"], ["web:85-99/tcp"], ["web:85-90/tcp"]),
        (["web:80/tcp"], ["web:80/udp"], []),
        (["web"], ["api"], []),
        (["web:80"], ["web/icmp"], []),
        (["web"], ["web/icmp"], ["web:0-65535/icmp"]),
        (["10.0.0.0/8:80"], ["10.1.0.0/16"], ["10.1.0.0/16:80-80/"]),
        (["10.0.0.0/8"], ["192.0.2.1", "10.1.2.3/tcp"], ["10.1.2.3/32:0-65535/tcp"]),
        (["10.0.0.0/8"], ["::/0"], []),
        (["network:a"], ["network:b"], []),
    ],
)
def test_two_allow_lists_allow_what_both_do(
    one: list[str] | None, other: list[str] | None, met: list[str] | None
) -> None:
    first, second = (parse(each, [], None, [], False) for each in (one, other))
    assert texts(both(first, second))[0] == met
    assert texts(both(second, first))[0] == met


def test_a_name_and_a_prefix_cannot_be_combined_but_a_denial_can() -> None:
    own = parse(["web:80"], ["api"], None, [], False)
    with refuses(InvalidInput, hint="name the same in both, or say in the file what is denied"):
        both(own, parse(["10.0.0.0/8"], [], None, [], False))
    assert texts(both(own, parse(None, ["10.0.0.0/8"], [], [], True))) == [
        ["web:80-80/"],
        ["api:0-65535/", "10.0.0.0/8:0-65535/"],
        [],
    ]


def test_files_are_about_what_their_tables_match(folder: Path) -> None:
    write(
        folder,
        """
[[policy]]
owner = ["podman", "cni"]
network = "back*"
deny_from = ["web"]
[[policy]]
pod_namespace = "shop"
allow_from = ["api:80"]
egress = { allow = [] }
[[policy]]
name = "other"
allow_from = []
""",
    )
    write(folder, "not read", "b.txt")
    policy = whole()
    assert texts(policy) == [["api:80-80/"], ["web:0-65535/"], []]
    assert policy.deny_from[0].key == "a.toml:policy[0].deny_from[0]"
    assert whole(owner="cli", labels={}) == OPEN
    assert whole(name="other", owner="cli", labels={}).allow_from == ()


@pytest.mark.parametrize(
    "text",
    [
        "[[policy]",
        "policy = 1",
        "[other]",
        "[[policy]]\nallow = []",
        "[[policy]]\nname = 1",
        "[[policy]]\nallow_from = 'web'",
        "[[policy]]\nallow_from = ['we b']",
        "[[policy]]\negress = { allow_from = [] }",
        "[[policy]]\nlog = 1",
    ],
)
def test_file_that_is_not_right_refuses(folder: Path, text: str) -> None:
    write(folder, text)
    with pytest.raises(Error):
        whole()


def test_file_of_others_or_that_cannot_be_read_refuses(folder: Path) -> None:
    (folder / "dangling.toml").symlink_to("/nowhere")
    with refuses(
        Error, hint="pass the path of a file of policies or of its folder", file="dangling.toml"
    ):
        whole()
    (folder / "dangling.toml").unlink()
    write(folder, "")
    if os.geteuid() == 0:
        assert whole() == OPEN
        (folder / "a.toml").chmod(0o666)
    with pytest.raises(Error):
        whole()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the group of files")
def test_file_or_folder_that_a_group_can_write_refuses(folder: Path) -> None:
    above = folder / "niso"
    inner = above / "policies"
    inner.mkdir(parents=True)
    os.environ["NISO_POLICY_DIR"] = str(inner)  # the fixture restores it
    write(inner, "[[policy]]\nallow_from = []\n")
    assert whole().allow_from == ()
    for place, mode in ((inner / "a.toml", 0o664), (inner, 0o2775), (above, 0o775)):
        before = place.stat().st_mode & 0o7777
        os.chown(place, 0, 60)
        place.chmod(mode)
        with pytest.raises(Error, match="is writable for group games") as caught:
            whole()
        assert f"chmod go-w {place}; nothing is attached until then" in str(caught.value.hint)
        place.chmod(before)
    # a folder that was moved away is a policy that was taken away
    inner.rename(above / "gone")
    assert whole() == OPEN
    above.chmod(0o775)
    with pytest.raises(Error, match="is writable for group games"):
        whole()
