"""One host of a cluster with a real etcd and a kernel in memory: random commands, then what it is told on stdin."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from cluster_walk import Walk

from niso.cluster.etcd import Access, Etcd

LEAST = 20
"""Lines of what was done: on a slow machine it takes longer."""


def main(access: str, name: str, seed: str, seconds: str, folder: str) -> None:
    places = json.loads(access)

    def connect() -> Etcd:
        return Etcd(Access(tuple(places[0]), *places[1:]), 1.0, 2)

    walk = Walk(Path(folder), int(seed), connect(), (name,), connect=connect)
    until = time.monotonic() + float(seconds)
    try:
        while time.monotonic() < until or len(walk.done) < LEAST:
            walk.step()
            walk.require_safe()
        print("done", flush=True)
        for line in sys.stdin:
            orders = {"heal": walk.heal, "look": walk.look, "agree": walk.require_agreed}
            orders |= {"follow": walk.require_followed}
            (orders | {"leave": walk.leave})[line.strip()]()
            print("ok", len(walk.done), flush=True)
    except BaseException as error:
        error.add_note("\n".join(walk.done))
        raise
    finally:
        walk.close()


if __name__ == "__main__":
    os.environ.setdefault("NISO_STATE_DIR", sys.argv[5])
    main(*sys.argv[1:])
