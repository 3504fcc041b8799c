"""One host of a cluster with a real etcd and a kernel in memory: random commands, then what it is told on stdin."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from cluster_walk import Walk

from niso.cluster.etcd import Etcd, Reach

LEAST = 20
"""Lines of what was done: on a slow machine it takes longer."""


def main(access: str, name: str, seed: str, seconds: str, share: str, folder: str) -> None:
    """``share`` is the part of a processor that the steps may take."""
    places = json.loads(access)

    def connect() -> Etcd:
        return Etcd(Reach(tuple(places[0]), *places[1:]), 1.0, 2)

    walk = Walk(Path(folder), int(seed), connect(), (name,), connect=connect)
    until = time.monotonic() + float(seconds)
    try:
        while time.monotonic() < until or len(walk.done) < LEAST:
            before = time.process_time()
            walk.step()
            walk.require_safe()
            spent_s = time.process_time() - before
            time.sleep(min(1.0, spent_s * (1 / float(share) - 1)))
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
    os.environ.setdefault("NISO_STATE_DIR", sys.argv[6])
    main(*sys.argv[1:])
