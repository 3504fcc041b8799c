"""Test [volumes], [healthcheck] and [isolation.resources]: accepted values and errors."""

from __future__ import annotations

from typing import Any

import pytest
from stored import service_spec

from niso.base.errors import InvalidInput
from niso.manifest import process_keys, validate


def problems(**tables: object) -> list[InvalidInput]:
    """The errors of these tables."""
    return validate.rules(tables, "/", {})


def said(errors: list[InvalidInput]) -> dict[str | None, str]:
    return {error.key: error.message for error in errors}


SPREAD = {"service": {"replicas": 2}, "healthcheck": {"tcp": 80}}


@pytest.mark.parametrize(
    ("ports", "wrong"),
    [
        (["192.0.2.1:8080:80", "127.0.0.1:8080:80"], None),
        (["192.0.2.1:8080:80", "[2001:db8::1]:8080:81"], None),
        (["192.0.2.1:8080:80", "127.0.0.1:8080:81/udp"], None),
        ([":80", ":81"], None),
        (["192.0.2.1:8080:80", "127.0.0.1:8080:81"], "network.ports[1]"),
        (["8080:80", "127.0.0.1:8078-8081:8078-8081"], "network.ports[1]"),
        (["[2001:db8::1]:9000:1", "9000:2"], "network.ports[1]"),
    ],
)
def test_host_port_leads_to_one_port_behind_a_service_address(
    ports: list[str], wrong: str | None
) -> None:
    assert wrong not in said(problems(network={"ports": ports})) or wrong is None
    found = said(problems(network={"ports": ports}, **SPREAD))
    assert list(found) == ([wrong] if wrong else [])
    assert not wrong or "lead to different ports" in found[wrong]


# --- volumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"mount": "data"}, "mount", "is not absolute"),
        ({"mount": ""}, "mount", "is empty"),
        ({"mount": "/a//b"}, "mount", "contains an empty part, . or .."),
        ({"mount": "/a/"}, "mount", "contains an empty part, . or .."),
        ({"mount": "/a/../proc"}, "mount", "contains an empty part, . or .."),
        ({"mount": "/"}, "mount", "hide the service's /"),
        ({"mount": "/etc"}, "mount", "hide the service's /etc"),
        ({"mount": "/var"}, "mount", "hide the service's /var"),
        ({"mount": "/app"}, "mount", "/app is niso's"),
        ({"mount": "/app/data"}, "mount", "/app is niso's"),
        ({"mount": "/proc/sys"}, "mount", "/proc is niso's"),
        ({"mount": "/sys"}, "mount", "/sys is niso's"),
        ({"mount": "/dev/shm"}, "mount", "/dev is niso's"),
        ({"mount": "/etc/hosts"}, "mount", "/etc/hosts is written by niso"),
        ({"mount": "/etc/niso-hosts"}, "mount", "niso's"),
        ({"mount": "/etc/resolv.conf"}, "mount", "written by niso"),
        ({"mount": "/d", "host": "d"}, "host", "is not absolute"),
        ({"mount": "/d", "host": "/a\nb"}, "host", "unprintable character"),
        ({"mount": "/d", "host": "/d", "tmpfs": True}, "host", "conflicts with volumes.data.tmpfs"),
        ({"mount": "/d", "size": "1M"}, "size", "only a tmpfs has a size"),
        ({"mount": "/d", "host": "/d", "size": "1M"}, "size", "only a tmpfs has a size"),
        ({"mount": "/d", "mode": "ro"}, "mode", "only a path of the host has a mode"),
        (
            {"mount": "/d", "tmpfs": True, "mode": "rw"},
            "mode",
            "only a path of the host has a mode",
        ),
        ({"mount": "/d", "tmpfs": True, "size": "64"}, "size", "is not a valid size"),
    ],
)
def test_wrong_volume_is_refused_by_its_key(keys: dict[str, Any], key: str, words: str) -> None:
    found = said(problems(volumes={"data": keys}))
    assert list(found) == [f"volumes.data.{key}"]
    assert words in found[f"volumes.data.{key}"]


@pytest.mark.parametrize(
    "keys",
    [
        {"mount": "/data"},
        {"mount": "/etc/app"},
        {"mount": "/tmp"},
        {"mount": "/run/x"},
        {"mount": "/var/lib/x"},
        {"mount": "/applications"},
        {"mount": "/devices"},
        {"mount": "/d", "host": "/", "mode": "ro"},
        {"mount": "/d", "host": "/d"},
        {"mount": "/d", "tmpfs": True},
        {"mount": "/d", "tmpfs": True, "size": "64K"},
        {"mount": "/d", "tmpfs": False},
    ],
)
def test_right_volume_is_taken(keys: dict[str, Any]) -> None:
    assert problems(volumes={"data": keys}) == []


@pytest.mark.parametrize("name", ["", "1a", "-a", "a b", "a/b", "..", "a.b", "ä", "a" * 64])
def test_name_that_is_no_folders_name_is_refused(name: str) -> None:
    assert len(problems(volumes={name: {"mount": "/data"}})) == 1


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("/data/a", "the same as"),
        ("/data/a/b/c", "below"),
        ("/data", "above"),
        ("/data/ab", ""),
        ("/dat", ""),
    ],
)
def test_mount_points_lie_apart(second: str, words: str) -> None:
    found = problems(volumes={"one": {"mount": "/data/a"}, "two": {"mount": second}})
    if not words:
        assert found == []
        return
    (error,) = found
    assert error.key == "volumes.two.mount"
    assert f'{words} volumes.one.mount ("/data/a")' in error.message


# --- healthcheck -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "port", "host", "path"),
    [
        ("http://127.0.0.1:8080/health", "127.0.0.1", 8080, "127.0.0.1:8080", "/health"),
        ("http://localhost", "", 80, "localhost", "/"),
        ("http://[::1]:81/a?b=c#d", "::1", 81, "[::1]:81", "/a?b=c"),
        ("http://[0:0::1]", "::1", 80, "[0:0::1]", "/"),
        ("http://127.1.2.3?x", "127.1.2.3", 80, "127.1.2.3", "/?x"),
        ("http://api:8080/", "", 8080, "api:8080", "/"),
        ("http://web.niso.local:8080/", "", 8080, "web.niso.local:8080", "/"),
    ],
)
def test_url_of_the_service_itself_is_taken(
    text: str, address: str, port: int, host: str, path: str
) -> None:
    assert process_keys.url(text, "k", {"api", "web"}) == (address, port, host, path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("https://localhost", "is not supported"),
        ("ftp://localhost", "is not an http URL"),
        ("localhost:8080", "is not an http URL"),
        ("http://", "it has no host"),
        ("http://:80/", "it has no host"),
        ("http://localhost:0", "does not have a valid port"),
        ("http://localhost:65536", "does not have a valid port"),
        ("http://localhost:", "does not have a valid port"),
        ("http://[::1]80", "does not have a valid port"),
        ("http://[::1", "does not have a valid port"),
        ("http://example.com/", '"example.com" is not the service itself'),
        ("http://10.99.1.2/", '"10.99.1.2" is not the service itself'),
        ("http://[2001:db8::1]/", '"2001:db8::1" is not the service itself'),
        ("http://127.0.0.1@example.com/", "user or password"),
        ("http://localhost/a b", "character"),
        ("http://localhost/\r\nX: y", "character"),
        ("http://localhost/ä", "character"),
        ("http://localhost/" + "a" * 3000, "more than"),
    ],
)
def test_other_urls_are_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        process_keys.url(text, "healthcheck.http", {"api"})
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ({}, ["healthcheck"]),
        ({"tcp": 80, "http": "http://localhost"}, ["healthcheck.http"]),
        ({"tcp": 0}, ["healthcheck.tcp"]),
        ({"tcp": 65536}, ["healthcheck.tcp"]),
        ({"tcp": 80, "retries": 0, "interval": "0s", "timeout": "2m", "start_period": "-1s"}, None),
    ],
)
def test_wrong_healthcheck_is_refused(section: dict[str, Any], keys: list[str] | None) -> None:
    found = [error.key for error in problems(healthcheck=section)]
    assert found == (
        keys or [f"healthcheck.{k}" for k in ("retries", "interval", "timeout", "start_period")]
    )


def test_healthcheck_has_its_defaults() -> None:
    assert service_spec().program.healthcheck is None
    spec = service_spec(network={"hostname": "web"}, healthcheck={"http": "http://web/x"})
    assert spec.program.healthcheck == ("", 80, "web", "/x", 5.0, 2.0, 3, 10.0, (), "none", False)
    spec = service_spec(healthcheck={"tcp": 81, "retries": 1, "interval": "1s"})
    assert spec.program.healthcheck == ("", 81, "", None, 1.0, 2.0, 1, 10.0, (), "none", False)


# --- resources -------------------------------------------------------------------------------------------------------


def test_right_limits_are_taken() -> None:
    assert process_keys.memory_max("512M", "k") == 512 << 20
    assert [process_keys.cpu_max(text, "k") for text in ("1%", "50%", "200%", "1000000%")] == [
        1,
        50,
        200,
        1_000_000,
    ]
    assert (
        problems(isolation={"resources": {"memory_max": "1M", "cpu_max": "1%", "pids_limit": 2}})
        == []
    )


def test_tmp_has_a_quarter_of_the_memory_limit() -> None:
    for memory_max, text in (
        (None, "256M"),
        (1 << 20, "256K"),
        (6 << 20, "1536K"),
        (1 << 30, "256M"),
    ):
        assert process_keys.tmp_default(memory_max) == text
        assert process_keys.tmpfs(text, "k") == (memory_max or 1 << 30) // 4


@pytest.mark.parametrize(
    "text", ["", "%", "50", "0%", "05%", "-5%", "1.5%", "1000001%", "99999999%", "٣%", "5%%", " 5%"]
)
def test_wrong_share_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        process_keys.cpu_max(text, "isolation.resources.cpu_max")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("memory_max", "64K"), ("memory_max", "1T"), ("pids_limit", 1), ("pids_limit", 2**40)),
        *(("new_flows_limit", -1), ("arp_limit", 10**6 + 1), ("fragments_limit", -5)),
        ("new_neighbours_limit", -1),
        *(("shm_size", "1K"), ("shm_size", "0M"), ("tmp_size", "63K"), ("tmp_size", "1")),
    ],
)
def test_wrong_limit_is_refused_by_its_key(name: str, value: object) -> None:
    assert [error.key for error in problems(isolation={"resources": {name: value}})] == [
        f"isolation.resources.{name}"
    ]
