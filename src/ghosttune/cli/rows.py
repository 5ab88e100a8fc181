"""Commands that ask a run about its rows: index, attribute, similar, dedupe, cluster, select."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttune.cli.terminal import on_one_line, say
from ghosttune.own_code import allow_code

if TYPE_CHECKING:
    from ghosttune.choosing.attribute import Attribution, Influence
    from ghosttune.choosing.neighbours import Neighbour
    from ghosttune.choosing.tokens import Share, TokenShares

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
Checkpoints = Annotated[
    list[str] | None, typer.Option("--checkpoint", help="best (the default), last, all or a step; may be repeated.")
]
Data = Annotated[Path | None, typer.Option("--data", help="Rows of this file, not the run's training rows.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", show_default=True)]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model: only once you have read it.")
]
Code = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Run functions (path.py:function) and commands (alerts.command) that the configuration names.",
        callback=lambda given: given and allow_code(),
        expose_value=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

LONGEST = 300
"""Characters of a row that a line shows; --json has all."""

MOST_SHARES = 5
"""Tokens, or pairs of them, that a line shows, those of the largest shares; --json has all."""

LINE_SECONDS = 5.0
"""Least time between two lines of progress."""


def index(
    run: RunFolder,
    data: Data = None,
    checkpoint: Checkpoints = None,
    sketch: Annotated[
        str,
        typer.Option(
            "--sketch", help="auto, exact@1, standard@1, compact@1 or reference@1; auto is exact up to 256 MiB."
        ),
    ] = "auto",
    size: Annotated[int | None, typer.Option("--size", min=1, help="Numbers per parameter at most.")] = None,
    side: Annotated[int | None, typer.Option("--side", min=1, help="Least rank of each side of a parameter.")] = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layers", help="Pattern of parameter names, such as '*mlp*'; may be repeated.")
    ] = None,
    projection: Annotated[str | None, typer.Option("--projection", help="gaussian, rademacher or orthonormal.")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="even (alike on both sides) or cheap (multiplies least).")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the projections.")] = None,
    embeddings: Annotated[
        bool | None, typer.Option("--embeddings/--no-embeddings", help="Whether lookup tables are kept.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows at once; the run's batch if not given.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Share the rows among so many processes of this machine.")
    ] = 1,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Store the gradient of every row at a checkpoint; takes up where it was cut off."""
    if processes > 1 and "RANK" not in os.environ:
        from ghosttune.stages.launching import launch

        raise typer.Exit(launch(processes, sys.argv[1:]))
    from ghosttune.choosing.index import index as indexed
    from ghosttune.choosing.index import sketch_changes

    changes = sketch_changes(
        size=size,
        side=side,
        layers=layers,
        kind=projection,
        split=split,
        dtype=dtype,
        seed=seed,
        embeddings=embeddings,
    )
    stores = indexed(
        run,
        data,
        checkpoints=checkpoint or ["best"],
        kind=sketch,
        changes=changes,
        batch_size=batch_size,
        device=device,
        trust_remote_code=trust_remote_code,
        tell=_progress("{:,} of {:,} rows"),
    )
    if os.environ.get("RANK", "0") != "0":  # one of several processes speaks for all
        return
    if as_json:
        _print_json([asdict(store) for store in stores])
        return
    for store in stores:
        kept = "whole gradients" if store.exact else "projections"
        size_mib = store.bytes / (1 << 20)
        error = f", cosines within ±{store.error['cosine']:.3f}" if store.error else ""
        say(
            f"step {store.step}: {store.rows:,} rows ({store.added:,} new), {kept} of {store.numbers_per_row:,} numbers"
            f"{error}, {size_mib:.1f} MiB in {store.folder}"
        )


def attribute(
    run: RunFolder,
    query: Annotated[Path | None, typer.Option("--query", help="Rows whose likelihood is to be explained.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="A question, with --completion.")] = None,
    completion: Annotated[str | None, typer.Option("--completion", help="The answer to be explained.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many rows of each side.")] = 10,
    by: Annotated[str, typer.Option("--by", help="cosine, dot, adamw or preconditioned.")] = "cosine",
    tokens: Annotated[
        int, typer.Option("--tokens", min=0, help="How many rows of each side are divided among their tokens.")
    ] = 0,
    damping: Annotated[
        float | None,
        typer.Option(
            "--damping", help="Of `preconditioned` alone, in units of the mean squared gradient; 0.3 if unset."
        ),
    ] = None,
    data: Data = None,
    checkpoint: Checkpoints = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show the rows that most raised or lowered the likelihood of an answer."""
    from ghosttune.choosing.attribute import attribute as attributed

    found = attributed(
        run,
        query,
        prompt=prompt,
        completion=completion,
        by=by,  # type: ignore[arg-type]
        checkpoints=checkpoint or ["best"],
        data=data,
        damping=damping,
        top=top,
        tokens=tokens,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        _print_json(asdict(found))
        return
    for line in attribution_lines(found):
        say(line)
    if found.tokens:
        from ghosttune.cli.display import Display

        display = Display()
        for shares in found.tokens:
            display.shaded(shares)
            for line in share_lines(shares):
                say(line)


def similar(
    run: RunFolder,
    row_id: Annotated[str, typer.Argument(metavar="ROW_ID", help="Id of a row.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many rows.")] = 10,
    data: Data = None,
    checkpoint: Checkpoints = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show the rows whose gradients are nearest to that of a row."""
    from ghosttune.choosing.neighbours import similar as neighbours

    found = neighbours(
        run,
        row_id,
        checkpoints=checkpoint or ["best"],
        data=data,
        top=top,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        _print_json([asdict(row) for row in found])
        return
    for row in found:
        say(f"{row.cosine:+.4f}  {_row(row)}")


def dedupe(
    run: RunFolder,
    cosine: Annotated[float, typer.Option("--cosine", help="Least similarity of two near-duplicates.")] = 0.95,
    data: Data = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best, last or a step.")] = "best",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show groups of near-duplicates, the most similar first."""
    from ghosttune.choosing.neighbours import dedupe as duplicates

    groups = duplicates(
        run, cosine=cosine, checkpoint=checkpoint, data=data, device=device, trust_remote_code=trust_remote_code
    )
    if as_json:
        _print_json([asdict(group) for group in groups])
        return
    for group in groups:
        say(f"{group.cosine:.4f}")
        for row in group.rows:
            say(f"  {row.cosine:+.4f}  {_row(row)}")
    extra = sum(len(group.rows) - 1 for group in groups)
    say(f"{len(groups)} groups, {extra} rows more than one of each")


def cluster(
    run: RunFolder,
    clusters: Annotated[int, typer.Option("--clusters", min=1, help="How many groups.")],
    by: Annotated[str | None, typer.Option("--by", help="Column whose values are counted in each cluster.")] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many rows of each cluster are shown.")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", help="File (.jsonl or .csv) for the cluster and cosine of every row.")
    ] = None,
    data: Data = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best, last or a step.")] = "best",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the starting centres; the run's if not given.")
    ] = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Group the rows by the direction of their gradients, the largest group first."""
    from ghosttune.choosing.clustering import cluster as clustered

    found = clustered(
        run,
        clusters,
        by=by,
        checkpoint=checkpoint,
        data=data,
        top=top,
        seed=seed,
        out=out,
        device=device,
        trust_remote_code=trust_remote_code,
        tell=_progress("pass {:,}: {:,} rows changed their cluster"),
    )
    if as_json:
        _print_json(asdict(found))
        return
    nowhere = f", {found.nowhere:,} without a gradient in none" if found.nowhere else ""
    say(f"{found.rows:,} rows at step {found.checkpoint} in {len(found.clusters)} clusters{nowhere}")
    for group in found.clusters:
        makeup = ", ".join(f"{on_one_line(value)} {count}" for value, count in group.makeup.items())
        say(
            f"cluster {group.number}: {group.size:,} rows, mean cosine {group.cosine:.3f}"
            + (f"; {by}: {makeup}" if makeup else "")
        )
        for row in group.rows:
            say(f"  {row.cosine:+.4f}  {_row(row)}")
    if found.file:
        say(f"cluster and cosine of every row in {found.file}")


def select(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="File for the rows that are kept (JSONL); the rest beside it.")],
    keep: Annotated[float | None, typer.Option("--keep", help="Share below 1, or number of rows.")] = None,
    above: Annotated[float | None, typer.Option("--above", help="Keep scores above this, in place of --keep.")] = None,
    below: Annotated[float | None, typer.Option("--below", help="Keep scores below this.")] = None,
    by: Annotated[str, typer.Option("--by", help="value, similarity, loss, gradient_norm or random.")] = "value",
    lowest: Annotated[bool, typer.Option("--lowest", help="Keep the lowest scores: a control.")] = False,
    stratify: Annotated[
        str | None, typer.Option("--stratify", help="Column of which every value keeps the same share.")
    ] = None,
    query: Annotated[
        Path | None, typer.Option("--query", help="Rows to be similar to; the run's guide rows if not given.")
    ] = None,
    similarity: Annotated[
        str | None, typer.Option("--similarity", help="cosine (if unset), dot, adamw or preconditioned.")
    ] = None,
    data: Data = None,
    checkpoint: Checkpoints = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of `random`; the run's if not given.")] = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Choose rows to train on, with a reason for each; `data.train.keep` takes the file."""
    from ghosttune.choosing.select import select as selected

    chosen = selected(
        run,
        out,
        keep=keep,
        above=above,
        below=below,
        by=by,  # type: ignore[arg-type]
        lowest=lowest,
        stratify=stratify,
        query=query,
        similarity=similarity,  # type: ignore[arg-type]
        checkpoints=checkpoint,
        data=data,
        seed=seed,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        _print_json({"by": chosen.by, "kept": len(chosen.kept), "dropped": len(chosen.dropped), "file": chosen.file})
        return
    say(f"{len(chosen.kept):,} rows kept by {chosen.by} in {chosen.file}")
    say(f"{len(chosen.dropped):,} rows dropped, with reasons, in {chosen.dropped_file}")
    say(f"train on them with the same data and --set data.train.keep={chosen.file}")


COMMANDS = (index, attribute, similar, dedupe, cluster, select)


def attribution_lines(found: Attribution) -> list[str]:
    """What was found, a row on each line."""
    steps = ", ".join(str(step) for step in found.checkpoints)
    lines = [f"{found.rows:,} rows by {found.by} at step {steps}, query of {found.query_rows} rows"]
    for name, rows in (("helpful", found.helpful), ("harmful", found.harmful)):
        for row in rows:
            error = f" ±{row.error:.2g}" if row.error else ""
            lines.append(f"{name}  {row.score:+.4g}{error}  {_row(row)}")
        if not rows:
            lines.append(f"{name}  none")
    return lines


def share_lines(shares: TokenShares) -> list[str]:
    """The tokens of the row and of the answer, and the pairs of them, with the largest shares of the row's score."""
    lines = [f"{on_one_line(shares.example_id)} by its tokens: {_largest(shares.row)}"]
    if len(shares.answer) > 1:
        pairs = [
            (share, f"{_token(own)} → {_token(asked)}")
            for own, row in zip(shares.row, shares.pairs, strict=True)
            for asked, share in zip(shares.answer, row, strict=True)
        ]
        lines.append(f"  by the answer's: {_largest(shares.answer)}")
        lines.append(f"  by pairs: {_said(pairs)}")
    return lines


def _largest(shares: Sequence[Share]) -> str:
    return _said([(share.share, _token(share)) for share in shares])


def _said(shares: list[tuple[float, str]]) -> str:
    first = sorted(shares, key=lambda entry: -abs(entry[0]))[:MOST_SHARES]
    rest = shares[MOST_SHARES:]
    left = f", {len(rest)} others {sum(share for share, _ in shares) - sum(share for share, _ in first):+.3g}"
    return ", ".join(f"{text} {share:+.3g}" for share, text in first) + (left if rest else "")


def _token(share: Share) -> str:
    return f"⟦{on_one_line(share.text)}⟧" if share.text else f"(the other {share.tokens:,} tokens)"


def _row(row: Influence | Neighbour) -> str:
    said = " → ".join(" ".join(str(value).split()) for value in row.content.values())
    extra = ", ".join(f"{on_one_line(name)}: {on_one_line(value)}" for name, value in row.metadata.items())
    return f"{on_one_line(row.example_id)}  {shorten(said, LONGEST, placeholder=' …')}" + (
        f"  ({extra})" if extra else ""
    )


def _progress(line: str) -> Any:
    """Says the line with what it is called with, every few seconds."""
    last = time.monotonic()

    def tell(*counts: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say(line.format(*counts), err=True)

    return tell


def _print_json(value: Any) -> None:
    say(json.dumps(value, indent=2, ensure_ascii=False, default=str))
