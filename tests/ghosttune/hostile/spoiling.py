"""What several tests do to a file of a run."""

from __future__ import annotations

import json
from pathlib import Path


def changed_json(path: Path, **changes: object) -> None:
    """Replaces entries of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
