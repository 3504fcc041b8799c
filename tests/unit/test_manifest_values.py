"""Test single values of a manifest: accepted, refused, and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niso.base import text as base_text
from niso.base.errors import InvalidInput
from niso.manifest import addresses_and_ports, process_keys, values
from niso.manifest.addresses_and_ports import parse_port
from niso.manifest.keys import BY_PATH
from niso.plan import specs

Parser = Callable[[str, str], object]


def duration(text: str, key: str) -> float:
    return values.duration(text, key, 0.0)


ACCEPTED: list[tuple[Parser, str, object]] = [
    (duration, "200ms", 0.2),
    (duration, "5s", 5.0),
    (duration, "2m", 120.0),
    (duration, "1h", 3600.0),
    (BY_PATH["service.stop_timeout"].rule.parse, "0s", 0.0),
    (BY_PATH["service.restart_delay"].rule.parse, "10ms", 0.01),
    (BY_PATH["service.restart_delay"].rule.parse, "1m", 60.0),
    *(
        (BY_PATH["service.schedule"].rule.parse, text, text)
        for text in (
            *("daily", "*-*-* 03:00", "03:00", "Mon..Fri 08:00", "Mon,Wed *-*-1..7 4:00:00"),
            *("*:0/15", "Mon 05:00 Europe/Berlin", "*-*~1 03:00", "Sat", "2026-12-24 18:00"),
        )
    ),
    (BY_PATH["service.schedule"].rule.parse, " Daily  ", "daily"),
    (BY_PATH["service.schedule"].rule.parse, "monday   3:00", "monday 3:00"),
    (values.size, "64K", 65536),
    (values.size, "512M", 512 * 1024**2),
    (values.size, "2G", 2 * 1024**3),
    (values.service_name, "api", "api"),
    (values.service_name, "a", "a"),
    (values.service_name, "a" + "-" * 61 + "9", "a" + "-" * 61 + "9"),
    (values.service_name, "hosts", "hosts"),
    (values.host_label, "ip6", "ip6"),
    (values.network_name, "niso-default", "niso-default"),
    (values.network_name, "back-", "back-"),
    (values.user, "1000:1000", specs.ProcessUser(None, 1000, 1000)),
    (values.user, "0", specs.ProcessUser(None, 0, None)),
    (values.user, "4294967294", specs.ProcessUser(None, 4294967294, None)),
    (values.user, "www-data", specs.ProcessUser("www-data", None, None)),
    (values.user, "_apt", specs.ProcessUser("_apt", None, None)),
    (addresses_and_ports.static_address, "10.99.1.10", "10.99.1.10"),
    (values.version, "1.0.0", "1.0.0"),
    (values.version, "2", "2"),
    (values.entrypoint, "bin/api", "bin/api"),
    (values.entrypoint, "/usr/bin/redis-server", "/usr/bin/redis-server"),
    (values.entrypoint, "my server..sh", "my server..sh"),
    (values.working_dir, "/", "/"),
    (values.environment_name, "_LOG_level9", "_LOG_level9"),
    (values.capability, "NET_BIND_SERVICE", "NET_BIND_SERVICE"),
    (values.argument, "", ""),
    (values.argument, "line\nline", "line\nline"),
    (values.argument, "x" * values.MAX_STRING, "x" * values.MAX_STRING),
]


@pytest.mark.parametrize(("parser", "text", "value"), ACCEPTED)
def test_right_value_is_parsed(parser: Parser, text: str, value: object) -> None:
    assert parser(text, "key") == value


REFUSED: list[tuple[Parser, list[str]]] = [
    (
        duration,
        [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 s",
            "5S",
            "1h5m",
            "1ss",
            "1sm",
            "٣s",
            "05s",
            "99999999999s",
            "25h",
        ],
    ),
    (BY_PATH["service.restart_delay"].rule.parse, ["0s", "9ms", "61s", "2m"]),
    (BY_PATH["service.stop_timeout"].rule.parse, ["2h"]),
    (
        BY_PATH["service.schedule"].rule.parse,
        [
            *("", "foo", "25:00", "*-13-01", "0 3 * * *", "@daily", "*-*-*T03:00", "1:2:3:4"),
            *("00:00/0", "UTC", "-1:00", "daily\nOnBootSec=1", "03:00 %h", "a" * 300),
        ],
    ),
    (values.size, ["", "K", "0K", "64", "64k", "64KB", "1.5G", "-1K", "9" * 5000 + "K"]),
    (
        values.service_name,
        [
            "",
            "Api",
            "1a",
            "-a",
            "a-",
            "a_b",
            "a.b",
            "ä",
            "a" * 64,
            "host",
            "localhost",
            "ip6-loopback",
            "a\n",
            "a b",
        ],
    ),
    (values.host_label, ["", "localhost", "host", "ip6-allnodes", "web.", "WEB", "a" * 64]),
    (
        values.network_name,
        ["", "default", "none", "host", "9a", "Backend", "a/b", "a" * 64, "a\x00"],
    ),
    (
        values.user,
        [
            "",
            ":",
            "1000:",
            ":1000",
            "1:2:3",
            "01",
            "-1",
            "4294967295",
            "1:4294967295",
            "a b",
            "1a",
            "a:1",
        ],
    ),
    (values.user, ["٣", "ä", "-a", ".a", "a" * 33, "9" * 5000]),
    (
        addresses_and_ports.static_address,
        [
            "",
            "10.99.1",
            "10.99.1.256",
            "10.99.01.1",
            "10.99.1.1 ",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
        ],
    ),
    (
        addresses_and_ports.static_address,
        [
            "224.0.0.1",
            "255.255.255.255",
            "fe80::2",
            "::1",
            "ff02::1",
            "::ffff:10.99.1.2",
            "fd00::2%eth0",
            "1.2.3.4.5",
            "10.99.1.0/24",
            "api",
        ],
    ),
    (values.version, ["", "a b", "-1", "1\n", "v" * 65, "ä"]),
    (
        values.entrypoint,
        ["", "../x", "bin/../../x", "bin/", "a\x00b", "a\nb", "\x1b[31m", "x" * 4096],
    ),
    (values.working_dir, ["", "app", "./app", "/a\x00"]),
    (values.rootfs, ["", "/", "/a/../b", "..", "a/../../b", "a\x07"]),
    (values.environment_name, ["", "A B", "1A", "A-B", "A=B", "Ä", "A\x00"]),
    (values.capability, ["", "net_admin", "cap_net_admin", "CAP_CAP_NET_ADMIN", "ALL"]),
    (values.argument, ["a\x00b", "x" * (values.MAX_STRING + 1), "ä" * 65536]),
]


@pytest.mark.parametrize(
    ("parser", "text"), [(parser, text) for parser, texts in REFUSED for text in texts]
)
def test_wrong_value_is_refused_with_key_and_the_right_form(parser: Parser, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parser(text, "some.key")
    assert caught.value.key == "some.key"
    assert re.match(
        r"some\.key: (\".*\"|a very large number) (is|has|contains|leaves) .+ \(.+\)$",
        caught.value.message,
        re.DOTALL,
    )
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 700


def test_capabilities_are_those_of_the_kernels_header() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("linux/capability.h is not installed")
    defined = re.findall(
        r"^#define CAP_([A-Z_]+)\s+\d+$", header.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(defined) == set(values.CAPABILITIES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('a"b\\', '"a\\"b\\\\"'),
        ("\x1b]0;x\x07", '"\\u001b]0;x\\u0007"'),
        ("\u202e\U000e0001", '"\\u202e\\U000e0001"'),
        ([True, 1, "x"], '[true, 1, "x"]'),
        ({"a": 1.5}, '{"a" = 1.5}'),
        ([1] * 9, "[1, 1, 1, 1, 1, ...]"),
        ([[[[1]]]], "[[[...]]]"),
        pytest.param(1 << 40000, "a very large number", id="large"),
    ],
)
def test_value_is_shown_as_toml_without_control_characters(value: object, text: str) -> None:
    assert base_text.shown(value) == text


@settings(deadline=None)
@given(st.text())
def test_escaped_text_is_always_printable(text: str) -> None:
    assert base_text.escaped(text).isprintable()


@settings(deadline=None)
@given(st.sampled_from([parser for parser, _ in REFUSED] + [parse_port]), st.text())
def test_no_text_makes_a_parser_raise_anything_but_invalid_input(parser: Parser, text: str) -> None:
    try:
        parser(text, "key")
    except InvalidInput as error:
        assert error.message.isprintable()


@pytest.mark.parametrize(
    ("times", "schedule", "back"),
    [
        ("0 3 * * *", "*-*-* 03:00", "0 3 * * *"),
        ("*/5 * * * *", "*-*-* *:0/5", "*/5 * * * *"),
        ("0 4 * * 1-5", "Mon..Fri *-*-* 04:00", "0 4 * * Mon-Fri"),
        ("15 2 1 */3 *", "*-1/3-01 02:15", "15 2 1 */3 *"),
        ("0 22 * * 0,6", "Sun,Sat *-*-* 22:00", "0 22 * * Sun,Sat"),
        ("@weekly", "weekly", "0 0 * * Mon"),
        ("0 0 1 * 1", None, None),  # cron: on the first and on Mondays
        ("61 * * * *", None, None),
        ("reboot", None, None),
    ],
)
def test_times_of_cron_become_calendar_events_and_back(
    times: str, schedule: str | None, back: str | None
) -> None:
    assert process_keys.of_cron(times) == schedule
    assert schedule is None or process_keys.cron(schedule) == back


@pytest.mark.parametrize("schedule", ["*-*~1 03:00", "Mon *-*-1..7 04:00", "03:00 UTC", "*:*:0/5"])
def test_times_that_cron_does_not_have(schedule: str) -> None:
    assert process_keys.calendar(schedule, "k") == schedule and process_keys.cron(schedule) is None
