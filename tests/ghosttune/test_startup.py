"""What commands do not import, because an answer is no quicker than its slowest import; see `benchmarks/startup.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ghosttune.config.sections.model import ModelSettings
from ghosttune.models.builtin import builtin_model_folder
from ghosttune.models.loading import load_tokenizer

LIBRARIES = ["torch", "peft", "matplotlib", "scipy", "pandas", "datasets", "accelerate", "bitsandbytes", "sklearn"]
MODELS = ["transformers.configuration_utils", "transformers.modeling_utils", "transformers.models.auto"]
"""Parts of Transformers that import torch."""

CALL = """
import sys
from ghosttune.cli.main import main
try:
    main()
    code = 0
except SystemExit as end:
    code = end.code
print(code or 0, *(name for name in WATCHED if name in sys.modules))
"""


def imported(watched: list[str], *arguments: str) -> tuple[int, set[str]]:
    """(exit code, which of the watched modules the command has imported)."""
    program = CALL.replace("WATCHED", repr(watched))
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    code, *names = done.stdout.splitlines()[-1].split(" ")
    return int(code), set(names)


@pytest.fixture
def files(tmp_path):
    """What the words in a command's arguments stand for."""
    wrong, right = tmp_path / "wrong.yaml", tmp_path / "right.yaml"
    wrong.write_text("trian: {seed: 1}\n", encoding="utf-8")
    right.write_text("data: {train: {path: builtin:rows}}\nmodel: {device: cpu}\n", encoding="utf-8")
    return {"WRONG": str(wrong), "RIGHT": str(right), "NOWHERE": str(tmp_path / "nowhere")}


@pytest.mark.parametrize(
    ("arguments", "code", "more"),
    [
        (["--help"], 0, ["transformers", "numpy", "pydantic", "rich"]),
        (["show", "settings", "train.learning_rate"], 0, ["transformers"]),
        (["train", "WRONG"], 2, ["transformers"]),
        (["preview", "RIGHT"], 0, []),
        (["report", "NOWHERE"], 2, ["transformers"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else None,
)
def test_a_command_imports_nothing_it_does_without(files, arguments, code, more):
    called = [files.get(argument, argument) for argument in arguments]
    assert imported([*LIBRARIES, *MODELS, *more], *called) == (code, set())


def test_a_preview_asks_torch_for_a_device_that_was_asked_for(files):
    assert imported(["torch"], "preview", files["RIGHT"], "--set", "model.device=cuda:99") == (2, {"torch"})


def test_the_tokenizer_that_needs_no_torch_is_the_one_that_autotokenizer_loads():
    from transformers import AutoTokenizer

    own, theirs = load_tokenizer(ModelSettings()), AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    assert type(own).__mro__[1:] == type(theirs).__mro__
    assert {name: str(value) for name, value in vars(own).items()} == {n: str(v) for n, v in vars(theirs).items()}


ADAPTED = """
import sys
from ghosttune.config.facts import CAUSAL_LM
from ghosttune.config.loading import load_config
from ghosttune.models.loading import add_adapter, load_model
config = load_config({"data": {"train": {"path": "builtin:rows"}}, "model": {"device": "cpu"}})
for quantization in ("none", "int8"):
    settings = config.model.model_copy(update={"quantization": quantization})
    layers = add_adapter(load_model(settings, 0, CAUSAL_LM), config.method, 0).modules()
    print("bitsandbytes" in sys.modules, sorted({type(layer).__name__ for layer in layers if hasattr(layer, "lora_A")}))
"""


def test_peft_asks_for_bitsandbytes_when_a_base_is_quantized_by_it():
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", ADAPTED], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["False ['Linear']", "True ['Linear8bitLt']"], done.stderr
