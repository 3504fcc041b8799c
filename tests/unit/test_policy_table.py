"""Test the table network.policy of a manifest: its lists, defaults and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from niso.base.errors import ErrorGroup
from niso.manifest import load
from niso.manifest.policy import parse
from niso.plan.records import Entry, Peer, Policy

HEAD = '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "x"\n'


def test_outside_names_that_contradict_the_hosts_file_or_are_too_many(tmp_path: Path) -> None:
    names = [f"a{number}.example" for number in range(33)]
    found = errors(
        tmp_path,
        f"""
        [network]
        extra_hosts = {{ "a7.example" = "192.0.2.7" }}
        [network.policy.egress]
        allow = {names!r}
        """,
    )
    assert set(found) == {"network.policy.egress.allow[7]", "network.policy.egress.allow"}
    assert "network.extra_hosts" in found["network.policy.egress.allow[7]"]
    assert "at most 32" in found["network.policy.egress.allow"]


# --- the table -------------------------------------------------------------------------------------------------------


def loaded(folder: Path, text: str) -> Policy:
    (folder / "manifest.toml").write_text(HEAD + text, encoding="utf-8")
    return load.load(str(folder)).spec.network.policy


def errors(folder: Path, text: str) -> dict[str | None, str]:
    with pytest.raises(ErrorGroup) as caught:
        loaded(folder, text)
    return {error.key: error.message for error in caught.value.errors}


def test_policy_of_a_manifest_has_all_lists_with_their_keys(tmp_path: Path) -> None:
    policy = loaded(
        tmp_path,
        """
        [network.policy]
        allow_from = ["frontend:80", "network:backend"]
        deny_from = ["10.0.0.0/8"]
        log = true
        [network.policy.egress]
        allow = ["db.niso.local:5432"]
        deny = ["fd00::1", "frontend/icmp"]
        """,
    )
    assert policy == Policy(
        (
            Entry(
                "network.policy.allow_from[0]",
                "frontend:80",
                Peer("service", "frontend"),
                80,
                80,
                "",
            ),
            Entry(
                "network.policy.allow_from[1]",
                "network:backend",
                Peer("network", "backend"),
                0,
                65535,
                "",
            ),
        ),
        (
            Entry(
                "network.policy.deny_from[0]",
                "10.0.0.0/8",
                Peer("prefix", "10.0.0.0/8"),
                0,
                65535,
                "",
            ),
        ),
        (
            Entry(
                "network.policy.egress.allow[0]",
                "db.niso.local:5432",
                Peer("service", "db"),
                5432,
                5432,
                "",
            ),
        ),
        (
            Entry(
                "network.policy.egress.deny[0]",
                "fd00::1",
                Peer("prefix", "fd00::1/128"),
                0,
                65535,
                "",
            ),
            Entry(
                "network.policy.egress.deny[1]",
                "frontend/icmp",
                Peer("service", "frontend"),
                0,
                65535,
                "icmp",
            ),
        ),
        True,
    )


@pytest.mark.parametrize(
    ("text", "allow_from", "egress_allow"),
    [
        ("", None, None),
        ("[network.policy]\n", None, None),
        ("[network.policy.egress]\n", None, None),
        ("[network.policy]\nallow_from = []\n", (), None),
        ("[network.policy]\negress = { allow = [] }\n", None, ()),
    ],
)
def test_missing_list_allows_all_and_an_empty_one_nobody(
    tmp_path: Path,
    text: str,
    allow_from: tuple[Entry, ...] | None,
    egress_allow: tuple[Entry, ...] | None,
) -> None:
    assert loaded(tmp_path, text) == Policy(allow_from, (), egress_allow, (), False)


def test_nothing_said_is_the_empty_policy() -> None:
    assert parse(None, (), None, (), False) == Policy()


def test_all_errors_of_a_policy_come_at_once_with_their_keys(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        """
        [network.policy]
        allow_from = ["ok", "Bad", 5, "localhost"]
        deny_from = "frontend"
        allowfrom = []
        log = "yes"
        [network.policy.egress]
        allow = ["fine:80", "*.example.com:443", "host"]
        deny = ["10.0.0.1/8"]
        log = true
        """,
    )
    assert set(found) == {
        *(
            "network.policy.allow_from[1]",
            "network.policy.allow_from[2]",
            "network.policy.allow_from[3]",
        ),
        *("network.policy.deny_from", "network.policy.allowfrom", "network.policy.log"),
        *(
            "network.policy.egress.allow[1]",
            "network.policy.egress.allow[2]",
            "network.policy.egress.deny[0]",
        ),
        "network.policy.egress.log",
    }
    assert "host can always connect" in found["network.policy.allow_from[3]"]
    assert "the host is not a service" in found["network.policy.egress.allow[2]"]
    assert (
        "unknown key (did you mean network.policy.allow_from?)" in found["network.policy.allowfrom"]
    )


@pytest.mark.parametrize(
    "key",
    [
        "network.policy.allow_from",
        "network.policy.deny_from",
        "network.policy.egress.allow",
        "network.policy.egress.deny",
    ],
)
def test_wrong_entry_of_each_list_is_found_also_when_every_type_is_right(
    tmp_path: Path, key: str
) -> None:
    found = errors(tmp_path, f'[network]\n{key.removeprefix("network.")} = ["fine", "Bad"]\n')
    assert list(found) == [f"{key}[1]"]
    assert '"Bad" is not a valid service name' in found[f"{key}[1]"]


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[network]\npolicy = 5", "network.policy", "a table"),
        ("[network.policy]\negress = []", "network.policy.egress", "a table"),
        ("[network.policy]\nallow_from = {}", "network.policy.allow_from", "an array"),
        ("[[network.policy]]\n", "network.policy", "a table"),
        (
            "[network.policy.egress]\nallow_from = []",
            "network.policy.egress.allow_from",
            "network.policy.egress.allow",
        ),
    ],
)
def test_wrong_part_of_the_table_is_named(tmp_path: Path, text: str, key: str, words: str) -> None:
    found = errors(tmp_path, text)
    assert list(found) == [key]
    assert words in found[key]
