"""Benchmark published ports: time to publish 1, 1,000 and 10,000, cost of one more, and throughput."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from driver import Case, Chapter, Failed, Lab, flows_program, say
from figures import Found

NETWORKS = ("netavark", "cni", "docker")
RATES = ("tcp", "udp", "bulk")


@dataclass(frozen=True)
class Sizes:
    seconds: float
    counts: tuple[int, ...]
    most: dict[str, int]
    """As many ports of one service as a party can be given within the time."""
    in_turn: dict[str, int]
    """As many as it publishes in every round: a party whose ports cost 20 ms each would fill the time with one."""
    fill_s: float
    rounds: int
    rounds_s: float
    flow_rounds: int
    flow_ms: int


FULL = Sizes(
    seconds=480,
    counts=(1, 1_000, 10_000),
    most={"niso": 10_000, "netavark": 10_000, "cni": 1_000, "docker": 1_000},
    in_turn={"netavark": 10_000, "podman": 10_000, "cni": 1, "docker": 1},
    fill_s=100,
    rounds=10,
    rounds_s=25,
    flow_rounds=16,
    flow_ms=400,
)
QUICK = Sizes(
    seconds=50,
    counts=(1, 1_000),
    most={"niso": 10_000, "netavark": 1_000, "cni": 100, "docker": 100},
    in_turn={"netavark": 1_000, "podman": 1_000, "cni": 1, "docker": 1},
    fill_s=12,
    rounds=3,
    rounds_s=4,
    flow_rounds=3,
    flow_ms=100,
)
WAYS = {"niso": "process", "niso command": "command", "niso forward": "forward"}


def measure(sizes: Sizes, leave_out: frozenset[str]) -> Found:
    with Chapter(sizes.seconds, leave_out) as chapter:
        few, many, ports = _labs(chapter, sizes)
        _publish(chapter, few, sizes)
        _one_more(chapter, few, many, ports, sizes)
        _rates(chapter, few, many, ports, sizes)
        _memory(chapter, few, many, ports)
        return chapter.found


def _labs(chapter: Chapter, sizes: Sizes) -> tuple[dict[str, Lab], dict[str, Lab], dict[str, int]]:
    """Who -> a lab with one published port, and one with many; and how many these are."""
    try:
        flows = flows_program()
    except Failed as error:
        flows = ""
        for what in RATES:
            chapter.found.lacks(what, "", 0, str(error))
    few: dict[str, Lab] = {}
    many: dict[str, Lab] = {}
    ports: dict[str, int] = {}
    for who in ("plain", "niso", "netavark", "cni", "podman", "docker"):
        say(f"a lab for {who} with 1 port")
        if lab := chapter.lab(who, flows=flows):
            try:
                lab.call("fill", 1)
                if flows and who != "podman":
                    lab.call("serve", ["first"])
                few[who] = lab
            except Failed as error:
                chapter.found.lacks("", who, 0, str(error))
    for who, count in sizes.most.items():
        if who not in few or not (lab := chapter.lab(who, name=f"{who} many", flows=flows)):
            continue
        ports[who] = count
        say(f"{who}: {count:,} ports of one service")
        try:
            # in all others this is measured in turn; here once, since it takes so long
            took = lab.call("fill", count, within_s=min(sizes.fill_s, max(1.0, chapter.left_s())))
            if sizes.in_turn.get(who, count) < count:
                chapter.found.add("publish each", who, count, count, took)
                chapter.found.lacks(
                    "withdraw each",
                    who,
                    count,
                    "the ports were removed together with the lab, which takes less time",
                )
            if flows:
                lab.call("serve", ["first", "last"])
            many[who] = lab
        except Failed as error:
            chapter.found.lacks("", who, count, str(error))
    return few, many, ports


def _publish(chapter: Chapter, labs: dict[str, Lab], sizes: Sizes) -> None:
    for count in sizes.counts:
        for each in (False, True) if count > 1 else (False,):
            cases: dict[str, Case] = {}
            shape = "each" if each else "range"
            for who in (
                "niso",
                "niso command",
                "niso forward",
                "netavark",
                "cni",
                "podman",
                "docker",
            ):
                lab = labs.get(who.split()[0])
                if lab is None:
                    continue
                if count > sizes.in_turn.get(who, count):
                    if count > sizes.most[who]:
                        chapter.found.lacks(
                            f"publish {shape}",
                            who,
                            count,
                            f"skipped: {_most(chapter, who, sizes)}",
                        )
                    continue
                call = partial(lab.call, "publish", WAYS.get(who, ""), count, each)
                cases[who] = partial(_shaped, call, shape)
            chapter.in_turn(
                f"publish {count:,} {shape}", cases, count, count, sizes.rounds, sizes.rounds_s
            )


def _most(chapter: Chapter, who: str, sizes: Sizes) -> str:
    count = sizes.most[who]
    row = chapter.found.row("publish each", who, count)
    return (
        f"{count:,} took {row.values[0] / 1000:.0f} s"
        if row
        else f"as {count:,}: {chapter.found.why('', who, count)}"
    )


def _shaped(case: Case, shape: str) -> dict[str, float]:
    """Of one port alone, both shapes are the same."""
    return {f"{what} {shape}": value for what, value in case().items()}


def _one_more(
    chapter: Chapter, few: dict[str, Lab], many: dict[str, Lab], ports: dict[str, int], sizes: Sizes
) -> None:
    for labs, many_ports in ((few, False), (many, True)):
        cases: dict[str, Case] = {}
        at: dict[str, int] = {}
        for who in ("niso", "niso command", *NETWORKS):
            lab = labs.get(who.split()[0])
            if lab is not None:
                cases[who] = partial(_one, lab, "command" if who == "niso command" else "process")
                at[who] = ports[who.split()[0]] if many_ports else 1
        wanted = max(sizes.most.values()) if many_ports else 1
        chapter.in_turn(
            f"one more beside {'many' if many_ports else '1'}",
            cases,
            at,
            wanted,
            sizes.rounds,
            sizes.rounds_s,
        )


def _one(lab: Lab, way: str) -> dict[str, float]:
    return {f"one more: {what}": value for what, value in lab.call("one_more", way).items()}


def _rates(
    chapter: Chapter, few: dict[str, Lab], many: dict[str, Lab], ports: dict[str, int], sizes: Sizes
) -> None:
    """What passes to the only port of one, and to the last of many; all in one turn, since these are compared."""
    if any(each.what in RATES for each in chapter.found.absent):
        return
    cases: dict[str, Case] = {}
    at: dict[str, int] = {}
    for to in ("routed", "tracked", "translated"):
        if "plain" in few:
            cases[to], at[to] = partial(_rate, few["plain"], to, sizes.flow_ms), 0
    for who in ("niso", *NETWORKS):
        if who in few:
            cases[f"{who} 1"], at[f"{who} 1"] = partial(_rate, few[who], "first", sizes.flow_ms), 1
        if who in many:
            for to in ("first", "last"):
                name = f"{who} many {to}"
                cases[name], at[name] = partial(_rate, many[who], to, sizes.flow_ms), ports[who]
    chapter.in_turn("flows", cases, at, 0, sizes.flow_rounds, max(1.0, chapter.left_s() - 15))


def _rate(lab: Lab, to: str, ms: int) -> dict[str, float]:
    return {proto: lab.call("rate", proto, to, ms) for proto in RATES}


def _memory(
    chapter: Chapter, few: dict[str, Lab], many: dict[str, Lab], ports: dict[str, int]
) -> None:
    """What the processes hold resident with 1 port and with many; docker also as it is without any option."""
    for who in ("niso", "docker"):
        for lab, at in ((few.get(who), 1), (many.get(who), ports.get(who, 0))):
            if lab is not None:
                chapter.once("memory", who, at, partial(_resident, lab))
    for at in (1, 100):
        if "docker" in few and (
            lab := chapter.lab("docker-proxy", "docker with its proxy", f"docker-proxy {at}")
        ):
            try:
                lab.call("fill", at)
                chapter.once("memory", "docker with its proxy", at, partial(_resident, lab))
            except Failed as error:
                chapter.found.lacks("", "docker with its proxy", at, str(error))


def _resident(lab: Lab) -> dict[str, float]:
    return {f"port {what}": value for what, value in lab.call("memory").items()}
