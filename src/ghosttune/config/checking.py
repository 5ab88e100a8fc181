"""What is wrong with a configuration beyond single values: combinations that cannot work or would do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ghosttune.config.schema import RunConfig, leaf_fields
from ghosttune.errors import InputError, Problem
from ghosttune.registry import DATASETS

Found = Iterator[tuple[str, str]]


def conflicts(config: RunConfig, ignore: set[str] = frozenset()) -> list[Problem]:  # type: ignore[assignment]
    """Every impossible or idle combination; settings in `ignore` are already known to be wrong."""
    return [
        Problem(setting, message, config.origins.get(setting, "").replace("default", ""))
        for rule in RULES
        for setting, message in rule(config)
        if setting not in ignore
    ]


def unchosen(config: RunConfig) -> list[Problem]:
    """The critical settings left at a default that nobody chose (what --strict refuses)."""
    kinds = {"method": config.method.type, "task": config.task.type}
    problems = []
    for path, field in leaf_fields(kinds):
        extra = field.json_schema_extra
        critical = isinstance(extra, dict) and extra.get("critical")
        idle = path == "train.max_steps" and config.train.num_train_epochs
        idle = idle or (path == "data.train.path" and config.data.train.name)
        if critical and not idle and config.origins.get(path) == "default":
            problems.append(Problem(path, "must be chosen under --strict: set it in the file, a profile or with --set"))
    return problems


def _one_run_length(config: RunConfig) -> Found:
    train = config.train
    if train.max_steps is not None and train.num_train_epochs is not None:
        yield "train.num_train_epochs", "excludes train.max_steps; keep one"
    if train.max_steps is None and train.num_train_epochs is None:
        yield "train.max_steps", "is null and so is train.num_train_epochs; give one"


def _intervals_inside_the_run(config: RunConfig) -> Found:
    steps = config.train.max_steps
    if steps is None:
        return
    if config.train.warmup_steps >= steps:
        yield (
            "train.warmup_steps",
            f"must be fewer than the run's {steps} steps (got {config.train.warmup_steps}): "
            f"the peak learning rate would never be reached; at most {max(0, steps // 10)} is usual",
        )
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = getattr(config.train, name)
        if value is not None and value > steps:
            yield f"train.{name}", f"must be at most the run's {steps} steps (got {value}): it would never happen"


def _stopping_can_happen(config: RunConfig) -> Found:
    train = config.train
    if train.early_stopping_threshold > 0 and train.early_stopping_patience is None:
        yield "train.early_stopping_threshold", "does nothing without train.early_stopping_patience"
    if train.early_stopping_patience and train.max_steps and train.eval_steps:
        evaluations = train.max_steps // train.eval_steps
        if train.early_stopping_patience >= evaluations:
            yield (
                "train.early_stopping_patience",
                f"can never act: the run has {evaluations} evaluations (got {train.early_stopping_patience})",
            )


def _one_dev_source(config: RunConfig) -> Found:
    given = [name for name in ("fraction", "split", "path") if getattr(config.data.dev, name) is not None]
    if len(given) > 1:
        yield f"data.dev.{given[-1]}", f"excludes {' and '.join(f'data.dev.{name}' for name in given[:-1])}; keep one"


def _a_training_source(config: RunConfig) -> Found:
    train = config.data.train
    if train.name is None and train.path is None:
        yield "data.train.path", "is missing: give your own file, or data.train.name of a known dataset"
    if train.name is not None:
        try:
            DATASETS[train.name]
        except InputError as error:
            yield "data.train.name", str(error)
        for name in ("columns",):
            if getattr(train, name) is not None:
                yield f"data.train.{name}", f"does nothing for the known dataset {train.name}, which brings its own"
        if train.format != "auto":
            yield "data.train.format", f"does nothing for the known dataset {train.name}, which brings its own"


def _template_fits_loss(config: RunConfig) -> Found:
    if config.data.train.format == "text" and config.data.loss_on == "completion" and config.data.template == "plain":
        yield "data.loss_on", "must be all for rows of plain text: they have no completion of their own"


def _revision_of_a_hub_id(config: RunConfig) -> Found:
    if config.model.revision is not None and config.model.name.startswith(("builtin:", "/", ".")):
        yield "model.revision", f"does nothing for {config.model.name}, which is not a hub id"


RULES: tuple[Callable[[RunConfig], Found], ...] = (
    _one_run_length,
    _intervals_inside_the_run,
    _stopping_can_happen,
    _one_dev_source,
    _a_training_source,
    _template_fits_loss,
    _revision_of_a_hub_id,
)
