"""A part of the rows, chosen by what a run knows of them, with a reason for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ghostgrad.influence import norms
from ghosttune.choosing.attribute import By, scored
from ghosttune.choosing.opened import TRAIN, OpenedRun, Rows
from ghosttune.data.content import content
from ghosttune.data.records import Record
from ghosttune.data.selecting import Decision, drawn, keep_best, keep_beyond
from ghosttune.errors import DataError, InputError, listed
from ghosttune.run.directory import write_jsonl
from ghosttune.run.tables import name_beside, read_table
from ghosttune.training.guide import guide_losses

SelectBy = Literal["value", "similarity", "loss", "gradient_norm", "random"]


@dataclass(frozen=True)
class Selection:
    """What was kept, and what was not."""

    by: str
    kept: list[Decision]
    dropped: list[Decision]
    file: str
    dropped_file: str


def select(
    run: str | Path | OpenedRun,
    out: str | Path,
    *,
    keep: float | None = None,
    above: float | None = None,
    below: float | None = None,
    by: SelectBy = "value",
    lowest: bool = False,
    stratify: str | None = None,
    query: str | Path | None = None,
    similarity: By | None = None,
    checkpoints: Sequence[str] | None = None,
    data: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Selection:
    """Writes the rows that are kept to `out`, and the others beside it, each with its score and the reason.

    Args:
        keep: a share below 1, or a number of rows.
        above, below: in its place, keep the rows whose score is above or below this.
        by: `value` (standing in the run's ledger), `similarity` (to the guide rows, or the rows of `query`), `loss`
            (nats per target), `gradient_norm`, `random`.
        lowest: with `keep`, the lowest scores in place of the highest.
        stratify: a column of the rows; each of its values keeps the same share.
        similarity: how rows are compared with the query (`attribute`); cosine if not given.
        checkpoints: where similarity is taken, the best if not given; loss and gradient norm take the last of them.
        seed: of `random`; the run's if not given.
        data: a file to select from, in place of the training rows.

    The file trains as `data.train.keep` of the same data, with the dev and guide rows it had, or as `data.train.path`.
    Raises InputError where anything asked for cannot be had.
    """
    if sum(limit is not None for limit in (keep, above, below)) != 1:
        raise InputError("give one of: how much to keep, above which score, below which score")
    if keep is None and (lowest or stratify):
        raise InputError("a threshold has its side and is the same for every row; use lowest and stratify with keep")
    _require_effect(by, query=query, similarity=similarity, checkpoint=checkpoints, seed=seed)
    opened = run if isinstance(run, OpenedRun) else OpenedRun(run, device, trust_remote_code)
    rows = opened.rows(data)
    scores, named = _scores(opened, rows, by, query, similarity or "cosine", checkpoints or ("best",), seed)
    if keep is not None:
        kinds = {name: f"{stratify}={value}" for name, value in rows.column(stratify).items()} if stratify else None
        decisions = keep_best(scores, keep, named, lowest=lowest, kinds=kinds)
    else:
        decisions = keep_beyond(scores, named, above=above, below=below)
    kept = [decision for decision in decisions if decision.kept]
    if not kept:
        side = f"above {above:g}" if above is not None else f"below {below:g}"
        raise DataError(f"no row is kept: no {named} is {side}")
    dropped = [decision for decision in decisions if not decision.kept]
    out = Path(out)
    aside = out.with_name(f"{out.stem}.dropped{out.suffix}")
    for path, part in ((out, kept), (aside, dropped)):
        write_jsonl(path, [_line(rows.record(decision.example_id), decision) for decision in part])
    return Selection(by, kept, dropped, str(out), str(aside))


EFFECTIVE: dict[SelectBy, tuple[str, ...]] = {
    "value": (),
    "similarity": ("query", "similarity", "checkpoint"),
    "loss": ("checkpoint",),
    "gradient_norm": ("checkpoint",),
    "random": ("seed",),
}
"""What a selection reads beside the rows."""


def _require_effect(by: SelectBy, **given: Any) -> None:
    """InputError for what is not known, and for what is given and would do nothing."""
    if by not in EFFECTIVE:
        raise InputError(f"rows cannot be selected by {by!r}; known are {listed(EFFECTIVE)}")
    for name, value in given.items():
        if value is not None and name not in EFFECTIVE[by]:
            users = [other for other, names in EFFECTIVE.items() if name in names]
            raise InputError(f"--{name} does nothing for a selection by {by}; it is for {listed(users)}")


def _scores(
    opened: OpenedRun,
    rows: Rows,
    by: SelectBy,
    query: str | Path | None,
    similarity: By,
    checkpoints: Sequence[str],
    seed: int | None,
) -> tuple[dict[str, float | None], str]:
    """(the score of each row, what it is)."""
    if by == "random":
        seed = opened.config.train.seed if seed is None else seed
        return dict(drawn(rows.ids, seed)), f"draw of seed {seed}"
    if by == "value":
        return _standings(opened, rows), "standing"
    steps = opened.steps(checkpoints)
    if by == "loss":
        return losses(opened, rows, steps[-1]), f"loss at step {steps[-1]}"
    if by == "gradient_norm":
        store = opened.store(rows, steps[-1])
        lengths = dict(zip(store.ids, norms(store).tolist(), strict=True))
        return {name: lengths[name] for name in rows.ids}, f"gradient norm at step {steps[-1]}"
    towards = opened.prepared.guide.features if query is None else opened.rows(query).features
    if not towards:
        raise DataError("the run has no guide rows; give rows to be similar to with --query")
    found = scored(opened, rows, towards, steps, similarity).scores.tolist()
    which = f"{len(towards)} {'guide' if query is None else 'query'} rows"
    return dict(zip(rows.ids, found, strict=True)), f"similarity ({similarity}) to {which}"


def _standings(opened: OpenedRun, rows: Rows) -> dict[str, float | None]:
    if rows.name != TRAIN and opened.prepared.stream is None:
        raise InputError("only rows that trained have a value; select from the run's own rows, or by similarity")
    table = read_table(opened.run, "values", ["example_id", "standing"]).to_pydict()
    standings = dict(zip(table["example_id"], table["standing"], strict=True))
    return {name: standings.get(name) for name in rows.ids}


def losses(opened: OpenedRun, rows: Rows, step: int) -> dict[str, float | None]:
    """Nats per target of each row; windows of one row are added up."""
    model, size = opened.at(step), opened.config.train.per_device_eval_batch_size
    by_length = sorted(rows.features, key=len)
    guide = opened.guide(by_length, size)
    losses = (guide_losses(model, guide) * guide.targets).tolist()
    nats, targets = dict.fromkeys(rows.ids, 0.0), dict.fromkeys(rows.ids, 0)
    for row, loss in zip(by_length, losses, strict=True):
        nats[row.example_id] += loss
        targets[row.example_id] += row.targets
    return {name: nats[name] / targets[name] for name in rows.ids}


def _line(record: Record, decision: Decision) -> dict[str, Any]:
    found = {"example_id": decision.example_id, "score": decision.score, "reason": decision.reason}
    said = content(record)
    own = {name_beside(name, (*said, *found)): value for name, value in record.metadata.items()}
    return own | said | found
