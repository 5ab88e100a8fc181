"""The commands that look at more than one run, and at ghosttune itself: compare, sweep, validate, prove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghosttune.cli.rows import Code, Trust
from ghosttune.cli.terminal import say

if TYPE_CHECKING:
    from ghosttune.config.sweeps import Trial
    from ghosttune.proving.findings import Proved
    from ghosttune.workflows.validate import Cost

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

WORDS = {True: "passed", False: "FAILED", None: ""}


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Finished runs; the first is the reference.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for comparison.json, .csv and .md.")] = None,
    as_json: Json = False,
) -> None:
    """Compare runs with the first: intervals, budgets, cost, and paired tests on the same rows."""
    from ghosttune.judging.compare import compare as compared
    from ghosttune.judging.comparison_text import as_markdown

    result = compared(runs, out)
    say(
        json.dumps(result, indent=2, ensure_ascii=False) if as_json else as_markdown(result),
        end="\n" if as_json else "",
    )


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML: a config, axes or arms, and seeds.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the sweep; sweeps/NAME if not given.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="How many runs are trained at once.")] = 1,
    allow_code: Code = False,
    as_json: Json = False,
) -> None:
    """Train every arm under every seed, skipping what is finished, and compare the arms."""
    from ghosttune.judging.comparison_text import as_markdown
    from ghosttune.workflows.sweep import sweep as swept

    def said(trial: Trial, what: str) -> None:
        say(f"{trial.name}: {what}", err=as_json)

    result = swept(file, out, processes=processes, listen=said)
    if as_json:
        told = {"folder": str(result.folder.path), "failed": result.failed, "comparison": result.comparison}
        say(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        say(f"\n{len(result.finished)} runs finished, {len(result.failed)} failed, in {result.folder.path}\n")
        say(as_markdown(result.comparison) if result.comparison else "Fewer than two arms to compare.", end="")
    raise typer.Exit(1 if result.failed else 0)


def validate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run with a ledger.")],
    subsets: Annotated[int, typer.Option("--subsets", help="Random halves of the rows that are trained.")] = 32,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds of each; from two on there is a ceiling.")] = 1,
    drop: Annotated[float, typer.Option("--drop", help="Share of rows left out at each end, and at random.")] = 0.1,
    processes: Annotated[int, typer.Option("--processes", min=1, help="How many are trained at once.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would cost, and train nothing.")] = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Train the run again without some of its rows: how far values, standings and attribution agree with that."""
    from ghosttune.workflows.validate import validate as validated
    from ghosttune.workflows.validation_text import as_lines

    def planned(cost: Cost) -> None:
        minutes = f"about {max(1, round(cost.seconds / 60)):,} minutes in {cost.processes} processes"
        say(f"{cost.runs} retrainings, {minutes}; what is trained already is kept", err=as_json)

    def said(trial: Trial, what: str) -> None:
        say(f"{trial.name}: {what}", err=as_json)

    found = validated(
        run,
        subsets=subsets,
        seeds=seeds,
        drop=drop,
        processes=processes,
        plan=plan,
        begin=planned,
        listen=said,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        say(json.dumps(found, indent=2, ensure_ascii=False))
    elif not plan:
        say("\n".join(as_lines(found)))


def prove(
    numbers: Annotated[list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Only these proofs.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without the slowest variants: under two minutes.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder or hub id: prove its own arithmetic, on a small model of its kind."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="With --model: how it is tuned; lora if unset.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try the known-answer proofs on this machine: what is proved, the figure, the bar, passed or not."""
    from ghosttune.errors import InputError
    from ghosttune.proving.proofs import prove as tried

    if model is None and method is not None:
        raise InputError("--method says how the model of --model is tuned; give that too")
    if model is not None and quick:
        raise InputError("--quick goes without --model, whose proofs have no slow variants")
    said = (lambda proved: None) if as_json else (lambda proved: say(_proof(proved)))
    found = tried(numbers or (), quick=quick, model=model, method=method or "lora", listen=said)
    passed = sum(proved.passed for proved in found)
    if as_json:
        proofs = [vars(proved) | {"passed": proved.passed} for proved in found]
        say(json.dumps({"passed": passed == len(found), "proofs": proofs}, indent=2, default=vars))
    else:
        say(f"{passed} of {len(found)} proofs passed in {sum(proved.seconds for proved in found):.0f} s")
    raise typer.Exit(0 if passed == len(found) else 1)


def _proof(proved: Proved) -> str:
    """A line for the claim and one for each figure."""
    seconds = f"{proved.seconds:.0f} s"
    lines = [f"{proved.number:>2}  {proved.claim:<76}{seconds:>27}  {WORDS[proved.passed]}"]
    for finding in proved.findings:
        line = f"    {finding.what:<76}{_figure(finding.measured):>14}  {finding.bar:<13}{WORDS[finding.passed]}"
        lines.append(line.rstrip())
    if proved.error:
        lines.append(f"    ended by {proved.error}")
    return "\n".join([*lines, ""])


def _figure(measured: float | str) -> str:
    return measured if isinstance(measured, str) else f"{measured:.4g}"
