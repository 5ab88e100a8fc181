"""The command that takes a model to other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ghosttune.cli.rows import Json, Trust
from ghosttune.cli.terminal import say
from ghosttune.errors import listed


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory; for gguf and ollama any model too.")],
    to: Annotated[str, typer.Option("--to", help="gguf, ollama, vllm, mlx or hub.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the files.")],
    kind: Annotated[
        str, typer.Option("--kind", help="How GGUF stores weights: f16, bf16, f32, q8_0, q5_1, q5_0, q4_1 or q4_0.")
    ] = "f16",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The LoRA adapter as a GGUF file of its own, not merged.")
    ] = False,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", metavar="FOLDER", help="Let the converter of these sources write the GGUF."),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload to the hub; nothing is sent without it.")
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a run for llama.cpp, Ollama, vLLM, mlx-lm or the hub, asking as it was trained to be asked."""
    from ghosttune.workflows.export import export as exported

    done = exported(
        run,
        to,
        out,
        kind=kind,
        adapter=adapter,
        llama_cpp=llama_cpp,
        push=push,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        say(json.dumps(done, ensure_ascii=False))
        return
    say(f"{done['folder']}: {listed(done['files'])}")
    for note in done["notes"]:
        say(f"note: {note}")
    say(f"uploaded to {done['pushed']}" if "pushed" in done else done["command"])
