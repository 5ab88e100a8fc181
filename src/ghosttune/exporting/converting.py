"""llama.cpp's own converter, for families and tokenizers that are not known here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ghosttune.errors import GhosttuneError, InputError

SCRIPT = "convert_hf_to_gguf.py"

KINDS = ("f16", "bf16", "f32", "q8_0")
"""What the converter's --outtype takes."""

SHOWN = 5
"""Last lines of what the converter says that a message holds."""


def converter_in(folder: Path, kind: str) -> Path:
    """The converter in a folder of llama.cpp; InputError where there is none, or it does not know the kind."""
    script = folder / SCRIPT
    if not script.is_file():
        raise InputError(f"--llama-cpp {folder} has no {SCRIPT}: give the folder of llama.cpp's sources")
    if kind not in KINDS:
        raise InputError(f"llama.cpp's converter does not write {kind}; it writes {', '.join(KINDS)}")
    return script.resolve()


def convert(script: Path, model: Path, out: Path, kind: str) -> None:
    """Runs the converter on a model folder; GhosttuneError with its last words where it fails."""
    command = [sys.executable, str(script), str(model), "--outfile", str(out), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0 or not out.is_file():
        said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-SHOWN:])
        raise GhosttuneError(f"llama.cpp's converter ended with {done.returncode}:\n  {said}")
