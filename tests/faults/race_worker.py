"""Run inside a lab's agent with the words ``NUMBER OPERATIONS SECONDS KILLS``: takes niso's commands, the same ones for the same number,
as many as OPERATIONS and as long as SECONDS, and prints what became of each as a line of JSON. With KILLS 1 a third of them die
at one of their steps.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from itertools import count

import lab_agent

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
    outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, output in enumerate(outputs, 1):
            os.dup2(output, fd)
        lab_agent.run_niso(argv, environment)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err = (os.pread(output, 1 << 20, 0).decode() for output in outputs)
    for output in outputs:
        os.close(output)
    line = json.dumps({"argv": argv, "status": status, "stdout": out, "stderr": err})
    print(line, flush=True)  # a child would write what is left in the buffer too
