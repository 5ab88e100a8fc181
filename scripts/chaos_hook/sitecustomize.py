"""Python runs this at its start when the folder is on PYTHONPATH: arms the fault of CHAOS in who it is meant for.

At its end such a process adds how many points it had to the file CHAOS_POINTS.
"""

import atexit
import json
import os
import sys

if spec := os.environ.get("CHAOS"):
    wanted = json.loads(spec)
    if all(os.environ.get(name) == value for name, value in wanted.pop("where").items()):
        sys.path.insert(0, os.path.dirname(__file__))
        from faults import Fault, arm

        points = arm(Fault(**wanted))

        def write_count() -> None:
            """One line."""
            with open(os.environ["CHAOS_POINTS"], "a") as counts:
                counts.write(f"{points.count}\n")

        atexit.register(write_count)
