"""Run inside a lab: check that niso handles any command line itself. ``argument_driver.py EXAMPLES``.

Commands run in this process, on the real kernel, with a service and a network that are there. What comes out is held to be
printable, JSON where that was asked for, and never a word of Python.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from niso.cli import command, main

API, WEB = "/tmp/packages/api", "/tmp/packages/web"
NASTY_WORDS = r"""
- -- --- -n -1 --help -h %s%n {0}{version} API api. ８０８０:80 ²:³ ٣:٣ аpi ａｐｉ 1e3
0x50:80 0b1 1_0:80 .. . / // ../../etc/passwd /proc/self/environ /dev/zero /proc/1/root
api/../web ~ $(id) `id` a,b a=b # * \ 0:0 65536:1 1:65536 -1:1 1-0:1-0 1-65535:1-65535
8080:80/icmp [::]:1:1 [::1]:1:1 :: 10.99.0.0/99 0.0.0.0/0 224.0.0.0/24 ::/0 0s 1h1
10.99.7.1/24 10.99.7.0/31 fd00::/64 255.255.255.255
"""
NASTY = [
    *NASTY_WORDS.split(),
    *("", " ", "-\x1b[2J", "--\x1b]0;x\x07", "--json=\x9b31m", "\x1b[31mred", "a\nniso: done"),
    *("a\rb", "\x7f", "\x08\x08", "\u202eipa", "\u2028", "\ufeffapi", "\U000e0061pi", "\udcff"),
    *("api\udc80", "/tmp/\udcff", "\udcff:\udcff", "\ud800", "a" * 100_000, "/" + "a/" * 3000),
    *("é" * 300, "9" * 5000, "api\u200b", "api ", "; reboot", "' or 1=1 --"),
    '" } add rule inet niso raw accept',
]
PLAIN_WORDS = r"""
api web backend niso-default spare host api:80 web:80/tcp 8080:80 9090:90/udp :8080
"""
PLAIN = [
    *PLAIN_WORDS.split(),
    *("192.0.2.1", "80", API, WEB, f"{WEB}/manifest.toml", "/tmp/stack", "10.99.9.0/24"),
    *("fd00:99:9::/64", "1s", "20"),
]
NET_WORDS = "create list inspect remove ports rules ping explain stats check repair"
OPTION_WORDS = r"""
--json -v --verbose --dry-run --all --volumes --timeout --remove --take-over -n -t
--lines --subnet --ipv6 --gateway --internal --mtu --exposed --sweep --yes --prove
-- -4 -6 -V
"""
OPTIONS = OPTION_WORDS.split()
WORDS = st.one_of(
    st.sampled_from(PLAIN),
    st.sampled_from(PLAIN),
    st.sampled_from(NASTY),
    st.sampled_from(OPTIONS),
    st.text(max_size=8),
)
ACTIONS = [
    *([name] for name in command.COMMANDS if name not in ("lab", "net", "stack", "cluster")),
    *(["net", name] for name in NET_WORDS.split()),
    *(["stack", name] for name in ("up", "down", "ps", "status")),
    *([name] for name in ("--version", "--help", "help", "net", "stack", "cluster", "nat")),
]
COMMANDS = st.one_of(*[st.sampled_from(ACTIONS)] * 9, WORDS.map(lambda word: [word]))
LINES = st.tuples(COMMANDS, st.lists(WORDS, max_size=4)).map(lambda parts: [*parts[0], *parts[1]])

ENDS = {0, 1, 2}
NO_JSON = {"-h", "--help", "-V", "--version", "--dry-run", "exec", "version"}


def called(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr as they would be on a terminal that speaks UTF-8."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main.run(arguments)
        except SystemExit as end:  # of argparse's help
            assert end.code == 0, arguments
            status = 0
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return status, texts[0], texts[1]


@settings(
    max_examples=int(sys.argv[1]),
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(LINES)
def every_line_is_answered(arguments: list[str]) -> None:
    # what no argv can hold, and what never ends by itself
    arguments = [argument.replace("\0", "") for argument in arguments]
    if arguments[:1] in (["lab"], ["events"], ["web"], ["top"]) or arguments[1:2] == ["drops"]:
        return
    if arguments[:1] == ["logs"]:
        arguments = [each for each in arguments if not each.startswith(("-f", "-tf", "--follow"))]
    signal.alarm(60)
    status, out, err = called(arguments)
    signal.alarm(0)
    said = ascii((arguments, status, out[-2000:], err[-2000:]))
    assert status in ENDS or (arguments[:1] == ["exec"] and 0 <= status < 256), said
    assert "Traceback" not in err and "bug in niso" not in err, said
    assert all(line.isprintable() for line in err.split("\n")), said
    if arguments[:1] != ["exec"] and arguments[:1] != ["logs"]:
        assert out.replace("\n", "").replace("\t", "").isprintable(), said
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if status:
        words = ("niso: ", "  hint: ", "    ", '{"error": ', "niso")
        assert arguments[:1] == ["exec"] or out or err.startswith(words), said
    elif "--json" in before and out and not NO_JSON & set(arguments):
        json.loads(out)


if __name__ == "__main__":
    for once in (["net", "create", "spare"], ["activate", API]):
        assert called(once)[0] == 0, called(once)
    every_line_is_answered()
    print("all answered")
