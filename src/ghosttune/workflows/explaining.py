"""What a setting means, and what it was and did in a run: the text behind `ghosttune show settings KEY`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from ghosttune.config.loading import value_at
from ghosttune.config.rendering import inline
from ghosttune.config.schema import KINDS
from ghosttune.config.setting import told
from ghosttune.config.wording import accepted
from ghosttune.errors import InputError
from ghosttune.stages.runs import Run, open_run

Record = dict[str, Any]


def explained(name: str, field: FieldInfo, run: Path | None = None) -> dict[str, str]:
    """Heading -> text: what, why, how, benefit, cost and default; with a run, its value, its origin and its figures.

    InputError where the run has no such setting, because its method, task or strategy is another.
    """
    extra = told(field)
    unit = f" ({extra['unit']})" if extra.get("unit") else ""
    facts = {
        "what": " ".join((field.description or "").split()),
        "why": str(extra.get("why") or ""),
        "how": f"{_names(name) or accepted(field)}{unit}; --set {name}=VALUE, or its line in the file",
        "benefit": str(extra.get("benefit") or ""),
        "cost": str(extra.get("cost") or ""),
        "default": inline(field.default) + (" (must be chosen under --strict)" if extra.get("critical") else ""),
    }
    if run is not None:
        facts |= _in_run(name, open_run(run, trust_remote_code=True))  # no model is loaded: what it was
    return {heading: text for heading, text in facts.items() if text}


def _names(name: str) -> str:
    """What a setting that chooses the others of its section takes; empty for the others."""
    section, _, key = name.partition(".")
    chooses = section in KINDS and KINDS[section].key == key
    return " | ".join(entry.name for entry in KINDS[section].registry) if chooses else ""


def _in_run(name: str, run: Run) -> dict[str, str]:
    record = run.record
    if name not in record["origins"]:
        raise InputError(f"{run.path} has no setting {name}: its method, task or strategy is another")
    found = figures(name, run)
    return {"in run": f"{inline(value_at(run.config, name))}, from {record['origins'][name]}"} | (
        {"figures": "; ".join(found)} if found else {}
    )


def figures(name: str, run: Run) -> list[str]:
    """What the run measured that this setting has to do with: the figures of the longest path that fits."""
    fitting = [path for path in FIGURES if f"{name}.".startswith(f"{path}.")]
    return list(FIGURES[max(fitting, key=len)](run)) if fitting else []


def _parameters(run: Run) -> Iterator[str]:
    counts = run.record["model"]["trainable_parameters"]
    shares = ", ".join(f"{group} {count:,}" for group, count in counts.items())
    yield f"{sum(counts.values()):,} trained parameters ({shares})"
    yield from _time(run)
    if "ledger" in run.record:
        drops = ", ".join(f"{group} {drop:.3f}" for group, drop in run.groups.items())
        yield f"guide loss lowered by {drops}"


def _model(run: Run) -> Iterator[str]:
    weights = run.record["model"].get("weight_bytes")
    if weights is not None:
        yield f"weights {weights / 2**20:.1f} MiB"
    yield from _memory(run)
    yield from _result(run)


def _rows(run: Run) -> Iterator[str]:
    data = run.record["data"]
    yield "rows: " + ", ".join(f"{split} {count:,}" for split, count in data["rows"].items())
    if left_out := sum(run.record["left_out"].values()):
        yield f"{left_out:,} rows of the source not used"


def _lengths(run: Run) -> Iterator[str]:
    data = run.record["data"]
    yield f"{data['tokens']['train'] / data['rows']['train']:.0f} tokens per training row"
    yield f"{len(data['cut_rows']['train'])} training rows cut"
    yield from _padding(run)
    yield from _memory(run)


def _batches(run: Run) -> Iterator[str]:
    yield from _padding(run)
    yield from _time(run)
    yield from _memory(run)


def _training(run: Run) -> Iterator[str]:
    yield from _result(run)
    yield from _time(run)


def _guide(run: Run) -> Iterator[str]:
    ledger = run.record.get("ledger")
    if ledger is not None:
        yield f"guide loss {ledger['guide_loss_start']:.3f} -> {ledger['guide_loss_end']:.3f}"
        yield f"{ledger['modules_residual']:+.3f} of it not explained by the modules"


def _chosen(run: Run) -> Iterator[str]:
    if chosen := run.record.get("online_selection"):
        yield f"{chosen['kept']:,} of {chosen['candidates']:,} candidates trained, chosen in {chosen['seconds']:.1f} s"
        yield f"{chosen['rows_kept']:,} different rows trained, of {chosen['rows_offered']:,} that were candidates"


def _learnt(run: Run) -> Iterator[str]:
    if learnt := run.record.get("mixture"):
        for name, weight in learnt["weights"].items():
            yield f"weight of {name} {weight['first']:.2f} -> {weight['last']:.2f}"
        yield f"{learnt['changes']:,} changes, which took {learnt['seconds']:.1f} s"


def _answers(run: Run) -> Iterator[str]:
    if (seconds := run.record["stage_seconds"].get("evaluate")) is not None:
        yield f"evaluation took {seconds:.1f} s"


def _time(run: Run) -> Iterator[str]:
    seconds, speed = run.record["stage_seconds"].get("train"), run.record.get("tokens_per_second")
    if seconds and speed:  # a run that was killed has neither
        yield f"{run.record['step']} updates in {seconds:.1f} s, {speed:,.0f} tokens per second"


def _padding(run: Run) -> Iterator[str]:
    if (share := run.record.get("padding_share")) is not None:
        yield f"padding was {share:.1%} of the positions"


def _memory(run: Run) -> Iterator[str]:
    for place, size in run.record.get("peak_memory_mb", {}).items():
        yield f"peak memory of the {place} {size:,.0f} MB"


def _result(run: Run) -> Iterator[str]:
    if judged := run.record.get("verdict"):
        if earned := judged.get("reward"):
            yield (
                f"reward {earned['base']:.3f} -> {earned['adapter']:.3f}, success {earned['success_base']:.0%} -> "
                f"{earned['success']:.0%} of dev prompts ({judged['verdict']}), best at step {judged['best_step']}"
            )
            return
        yield (
            f"dev loss {judged['dev_loss_base']:.3f} -> {judged['dev_loss']:.3f} ({judged['verdict']}), best at step "
            f"{judged['best_step']}"
        )


FIGURES: dict[str, Callable[[Run], Iterator[str]]] = {
    "model": _model,
    "method": _parameters,
    "task": _result,
    "data": _rows,
    "data.guide": _guide,
    "data.mixture": _learnt,
    "data.online_selection": _chosen,
    "data.max_length": _lengths,
    "data.truncated_share": _lengths,
    "train": _training,
    "train.per_device_train_batch_size": _batches,
    "train.group_by_length": _batches,
    "train.gradient_accumulation_steps": _batches,
    "train.activation_checkpointing": _batches,
    "phases": _training,
    "measure.ledger": _guide,
    "evaluate": _answers,
}
"""Path of a section or setting -> what a run says of it."""
