"""Fine-tune a language model from one YAML file and learn what lowered the held-out loss.

The command line is a thin shell over these functions; each is imported when it is first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ghosttune.version import __version__

if TYPE_CHECKING:
    from ghosttune.config.loading import load_config
    from ghosttune.inference.pipeline import Pipeline
    from ghosttune.judging.compare import compare
    from ghosttune.judging.evaluate import evaluate
    from ghosttune.own_code import allow_code
    from ghosttune.proving.proofs import prove
    from ghosttune.stages.runs import Run, open_run
    from ghosttune.workflows.quickstart import quickstart
    from ghosttune.workflows.report import report
    from ghosttune.workflows.sweep import sweep
    from ghosttune.workflows.train import train

# PEFT imports bitsandbytes wherever it is installed; it then complains of faster kernels, and of inputs it casts.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOMES = {
    "allow_code": "ghosttune.own_code",
    "load_config": "ghosttune.config.loading",
    "train": "ghosttune.workflows.train",
    "evaluate": "ghosttune.judging.evaluate",
    "compare": "ghosttune.judging.compare",
    "sweep": "ghosttune.workflows.sweep",
    "prove": "ghosttune.proving.proofs",
    "quickstart": "ghosttune.workflows.quickstart",
    "report": "ghosttune.workflows.report",
    "open_run": "ghosttune.stages.runs",
    "Run": "ghosttune.stages.runs",
    "Pipeline": "ghosttune.inference.pipeline",
}

__all__ = [
    "Pipeline",
    "Run",
    "__version__",
    "allow_code",
    "compare",
    "evaluate",
    "load_config",
    "open_run",
    "prove",
    "quickstart",
    "report",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ghosttune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
