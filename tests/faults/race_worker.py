"""Run inside a lab as ``race_worker.py NUMBER OPERATIONS SECONDS KILLS``: takes niso's commands, the same ones for the same number,
as many as OPERATIONS and as long as SECONDS, and prints what became of each as a line of JSON. With KILLS 1 a third of them die
at one of their steps.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from itertools import count

number, operations, seconds, kills = (int(word) for word in sys.argv[1:])
chance = random.Random(number)
end = time.monotonic() + seconds
for taken in count():
    if taken >= operations and time.monotonic() >= end:
        break
    service = f"s{chance.randrange(6)}"
    network = f"n{chance.randrange(4)}"
    forward = f"{9100 + chance.randrange(3)}:80"
    argv = chance.choices(
        (
            ["activate", f"/tmp/{service}"],
            ["activate", service],
            ["deactivate", service],
            ["remove", service],
            ["restart", service],
            ["net", "create", network],
            ["net", "remove", network],
            ["port-forward", service, forward],
            ["port-forward", service, forward, "--take-over"],
            ["port-forward", service, forward, "--remove"],
            ["ps", "--json"],
            ["net", "list", "--json"],
        ),
        (6, 2, 3, 2, 2, 2, 2, 1, 2, 1, 2, 1),
    )[0]
    environment = dict(os.environ)
    if kills and chance.randrange(3) == 0:
        environment["NISO_FAILPOINT"] = f"{chance.randrange(1, 30)}:kill"
    done = subprocess.run(
        ["niso", *argv], capture_output=True, text=True, check=False, env=environment
    )
    print(
        json.dumps(
            {"argv": argv, "status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        )
    )
