"""The command that makes a run forget rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ghosttune.cli.rows import Json, RunFolder, Trust
from ghosttune.cli.terminal import say


def forget(
    run: RunFolder,
    rows: Annotated[
        Path, typer.Option("--rows", metavar="FILE", help="Ids to forget: lines of a .txt file, or rows' example_id.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The new run; RUN-without-FILE if not given.")] = None,
    loss: Annotated[str, typer.Option("--loss", help="npo or gradient_ascent.")] = "npo",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates at most.")] = 60,
    until: Annotated[
        float | None, typer.Option("--until", help="Stop when the rows' mean loss is as high, in nats per target.")
    ] = None,
    retain: Annotated[
        Path | None, typer.Option("--retain", metavar="FILE", help="Ids to hold on to; a sample if not given.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Also train the run anew without the rows, and stop at its loss.")
    ] = False,
    paraphrases: Annotated[
        Path | None, typer.Option("--paraphrases", metavar="FILE", help="Rows that say the same in other words.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Replace one setting of the new run.")
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Make a copy of a run's adapter forget some of its rows, and judge what is left of them and of the others."""
    from ghosttune.cli.display import Display
    from ghosttune.workflows.forget import forget as forgotten
    from ghosttune.workflows.forget_text import as_lines

    with Display(quiet=as_json) as display:
        found = forgotten(
            run,
            rows,
            out,
            loss=loss,
            steps=steps,
            until=until,
            retain=retain,
            retrain=retrain,
            paraphrases=paraphrases,
            overrides=set_ or [],
            listen=display.listen,
            trust_remote_code=trust_remote_code,
        )
    say(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(as_lines(found)))
