"""What a run cost, how it was configured, and where and on what it ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ghosttune.config.notation import parse_value
from ghosttune.reports.markup import Markup, facts, joined, said, shown, table, tag
from ghosttune.reports.reading import RunNumbers
from ghosttune.reports.verdict import duration

UNCHOSEN = ("default", "derived")
"""Origins of settings that nobody chose."""


def cost(numbers: RunNumbers) -> Markup:
    """Time, throughput, padding, memory and what trained."""
    record = numbers.record
    stages = record.get("stage_seconds", {})
    memory = {f"peak memory, {name}": f"{amount:,.0f} MiB" for name, amount in record.get("peak_memory_mb", {}).items()}
    padding = record.get("padding_share")
    parameters = record["model"]["trainable_parameters"]
    entries = {
        "time": duration(sum(stages.values())),
        "by stage": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items()),
        "tokens per second": record.get("tokens_per_second"),
        "targets per second": record.get("targets_per_second"),
        "choosing rows": _choosing(record),
        "learning the mixture": _learning(record),
        "padding": None if padding is None else f"{padding:.1%} of the positions computed",
        **memory,
        "trained parameters": f"{sum(parameters.values()):,} ({_listed(parameters)})",
        "updates": record["step"],
    }
    return facts({name: value for name, value in entries.items() if value not in (None, "")})


def _choosing(record: Mapping[str, Any]) -> str | None:
    """What online selection did and took; None where there was none."""
    chosen = record.get("online_selection")
    if not chosen:
        return None
    kept = f"{chosen['kept']:,} of {chosen['candidates']:,} candidates trained"
    return f"{_of_training(record, chosen['seconds'])}; {kept}"


def _learning(record: Mapping[str, Any]) -> str | None:
    """What learning the weights of a mixture came to and took; None where they were given."""
    learnt = record.get("mixture")
    if not learnt:
        return None
    weights = ", ".join(f"{name} {one['first']:.0%} -> {one['last']:.0%}" for name, one in learnt["weights"].items())
    return f"{_of_training(record, learnt['seconds'])}; {learnt['changes']:,} changes, {weights}"


def _of_training(record: Mapping[str, Any], seconds: float) -> str:
    training = record["stage_seconds"].get("train")  # absent where the process was killed after its last step
    return duration(seconds) + (f", {seconds / training:.0%} of training" if training else "")


def configuration(numbers: RunNumbers) -> Markup:
    """Every setting with its origin; those somebody chose first, the others folded away."""
    origins = numbers.record.get("origins", {})
    path = numbers.run.config
    settings = dict(_leaves(parse_value(path.read_text(encoding="utf-8")))) if path.is_file() else {}
    rows = [(name, _written(value), origins.get(name, "")) for name, value in settings.items()]
    chosen = [row for row in rows if row[2] not in UNCHOSEN]
    others = [row for row in rows if row[2] in UNCHOSEN]
    columns = ["setting", "value", "from"]
    folded = tag("details", tag("summary", f"{len(others)} settings nobody chose"), table(columns, others))
    note = tag("p", "config.yaml in the run directory holds all of them and runs again as it is.")
    return joined([note, table(columns, chosen), folded] if rows else [])


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _written(value: Any) -> str:
    """A value of a setting as YAML has it."""
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def origin(numbers: RunNumbers) -> Markup:
    """Data, versions and machine."""
    record = numbers.record
    data, environment = record["data"], record["environment"]
    host = environment["host"]
    entries = {
        "seed": record["seed"],
        "rows": _listed(data["rows"]),
        "tokens": _listed(data["tokens"]),
        "targets": _listed(data["targets"]),
        "files": said("\n".join(f"{name}, sha256 {digest}" for name, digest in data["fingerprints"].items())),
        "machine": f"{host['name']}, {host['system']}, {host['cpus']} processors",
        "Python": environment["python"],
        "packages": ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version),
        "git commit": shown(environment["git"]) or "none",
        "started": record["started"],
        "ended": record.get("ended", ""),
    }
    return joined([tag("h3", "Data, versions, machine"), facts(entries)])


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
