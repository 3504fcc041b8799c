"""Runs inside a lab: ``agent.py WORLD FLOWS``. Reads {"call": method, "args": [...]} by line, answers {"got"} or {"error"}."""

from __future__ import annotations

import json
import os
import sys

from niso_world import NisoWorld
from peer_worlds import Docker, Netavark
from policy_worlds import NoPolicy, Policed, Policies, Switched, Tracked
from worlds import Plain

WORLDS = {
    "niso": NisoWorld,
    "netavark": Netavark,
    "docker": Docker,
    "plain": Plain,
    "policies": Policies,
    "switched": Switched,
    "tracked": Tracked,
    "no-policy": NoPolicy,
    "policed": Policed,
}


def main(kind: str, flows: str) -> None:
    if os.environ.get("NISO_LAB") != "1":
        sys.exit("this changes links and rules: only in a lab")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what commands print is no answer
    world = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if world is None:
                world = WORLDS[kind](flows)
            answer = {"got": getattr(world, request["call"])(*request["args"])}
        except Exception as error:  # whatever it is, the driver must hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
