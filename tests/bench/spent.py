"""Print what a command takes, as JSON: ``spent.py COMMAND...``: "s" wall, "processor" time in s, "mib" at most resident.

A process of its own: the largest resident size of a child begins with that of the process that starts it (getrusage(2), exec).
"""

import json
import os
import sys
import time

output = os.open("/dev/null", os.O_WRONLY)
before = time.monotonic()
child = os.posix_spawnp(
    sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output, 1)]
)
_, status, usage = os.wait4(child, 0)
took = time.monotonic() - before
spent = {"s": took, "processor": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024}
print(json.dumps(spent))
sys.exit(os.waitstatus_to_exitcode(status))
