"""Proofs 6 and 9: wrong answers come out at the bottom, and right ones end by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ghosttune.choosing.opened import OpenedRun
from ghosttune.metrics.intervals import Interval
from ghosttune.metrics.ranking import auroc, separation
from ghosttune.proving.findings import Bench, Finding, at_least, beside, equal
from ghosttune.proving.learned import shipped_rows, taught
from ghosttune.stages.runs import Run
from ghosttune.training.checkpoints import restore_adapter
from ghosttune.training.guide import guide_losses

SEPARATION = {False: 0.9, True: 0.8}
"""Of all of the training; of two thirds of it, which is what is quick."""
STOPPED = 0.99


def mistakes_are_at_the_bottom(bench: Bench) -> list[Finding]:
    """Forty of the 400 shipped training rows have a wrong answer; the control ranks by loss, which needs no ledger."""
    run = bench.learned
    opened = OpenedRun(run.path, "cpu")
    values = {row["example_id"]: row for row in run.values if row["standing"] is not None}
    shipped = {row["id"]: row["planted"] for row in shipped_rows() if row["split"] == "train"}
    own = [name for name in shipped if name in values]
    flagged = np.array([shipped[name] for name in own])
    found = auroc(np.array([values[name]["standing"] for name in own]), flagged)
    by_loss = auroc(-losses_under(opened, own, run), flagged)
    findings = [
        at_least(
            f"AUROC of {flagged.sum()} wrong among {len(own)} rows, by standing", found.value, SEPARATION[bench.quick]
        ),
        equal("where they stand", separation(found, int(flagged.sum())), "at the bottom"),
        beside("95 % interval", _bounds(found)),
        beside("control: by loss under the adapter trained on them", _said(by_loss)),
    ]
    if bench.quick:
        return findings
    right = [row for row in shipped_rows() if not row["planted"]]
    clean = taught(bench.folder / "clean", right, False, "measure.ledger=null", "evaluate.limit=0")
    ceiling = auroc(-losses_under(opened, own, clean), flagged)
    return [*findings, beside("ceiling: by loss under an adapter that never saw them", _said(ceiling))]


def answers_end(bench: Bench) -> list[Finding]:
    """Dev rows answered greedily after training; the base says how much of it the training taught."""
    scores = (bench.learned.evaluation or {})["dev"]
    return [
        at_least(
            f"share of {scores['adapter']['stopped']['n']} answers", scores["adapter"]["stopped"]["value"], STOPPED
        ),
        beside("the untouched base", scores["base"]["stopped"]["value"]),
    ]


def losses_under(opened: OpenedRun, names: Sequence[str], trained: Run) -> np.ndarray:
    """Nats per target of the named training rows of a run under the last adapter of one."""
    wanted = set(names)
    features = [row for row in opened.train.features if row.example_id in wanted]
    guide = opened.guide(features, 64)
    model = opened.adapted.model.eval()
    restore_adapter(trained.folder.checkpoint(trained.folder.checkpoint_steps()[-1]), model)
    by_length = [features[place] for part in guide.parts for place in part]
    nats = guide_losses(model, guide).numpy() * guide.targets
    found = {row.example_id: nat / row.targets for row, nat in zip(by_length, nats, strict=True)}
    return np.array([found[name] for name in names])


def _bounds(found: Interval) -> str:
    return f"{found.low:.3f} to {found.high:.3f}"


def _said(found: Interval) -> str:
    return f"{found.value:.3f} ({_bounds(found)})"
