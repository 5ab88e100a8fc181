"""Python runs this at its start when the folder is on PYTHONPATH: arms the fault of CHAOS in who it is meant for."""

import json
import os
import sys

if spec := os.environ.get("CHAOS"):
    wanted = json.loads(spec)
    if all(os.environ.get(name) == value for name, value in wanted.pop("where").items()):
        sys.path.insert(0, os.path.dirname(__file__))
        from faults import Fault, arm

        arm(Fault(**wanted))
