"""Reading a configuration is quick: no module that registers settings imports a heavy library."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ["torch", "transformers", "peft", "rich", "pandas", "datasets", "accelerate", "tokenizers", "pyarrow"]

SHARE = 0.5
"""About 0.33 on a quiet machine; ten others on its two cores have been seen to make it 0.44."""

IMPORT_EVERYTHING = f"""
import importlib, pkgutil, sys
import ghosttune.errors, ghosttune.registry
for home in ("config", "methods", "tasks", "data.known", "run"):
    package = importlib.import_module(f"ghosttune.{{home}}")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    assert names, home
    for name in names:
        importlib.import_module(f"ghosttune.{{home}}.{{name}}")
from ghosttune.registry import DATASETS, METHODS, TASKS
assert METHODS.names() and TASKS.names() and DATASETS.names()
print(",".join(name for name in {HEAVY} if name in sys.modules))
"""

A_CONFIG_ERROR = f"""
import sys, time
start = time.process_time()
from ghosttune.config.loading import load_config
from ghosttune.errors import ConfigError
try:
    load_config(sys.argv[1])
except ConfigError as error:
    print(time.process_time() - start, len(error.problems), [name for name in {HEAVY} if name in sys.modules])
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_modules_with_settings_import_nothing_heavy():
    assert run(IMPORT_EVERYTHING) == ""


def test_the_import_test_can_fail():
    assert run(IMPORT_EVERYTHING.replace("import ghosttune.errors", "import rich, ghosttune.errors")) == "rich"


def test_a_config_error_is_quick_and_imports_nothing_heavy(write, torch_seconds):
    """Processor time, import included, in the best of three, beside that of importing torch."""
    path = write("trian: {seed: 1}\ntrain: {max_stepz: 3, learning_rate: '1'}\nmethod: {target_modules: 5}")
    answers = [run(A_CONFIG_ERROR, str(path)).split(" ", 2) for _ in range(3)]
    assert {(problems, heavy) for _, problems, heavy in answers} == {("5", "[]")}
    assert min(float(seconds) for seconds, _, _ in answers) < SHARE * torch_seconds


@pytest.mark.parametrize(
    "module", ["errors", "registry", "config.schema", "config.loading", "methods.lora", "tasks.causal"]
)
def test_each_module_can_be_the_first_one_imported(module):
    start = time.perf_counter()
    run(f"import ghosttune.{module}")
    assert time.perf_counter() - start < 10
