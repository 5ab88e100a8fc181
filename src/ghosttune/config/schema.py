"""A whole run's configuration: its sections, and which settings decide over others.

The schema is closed: an unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args, get_origin

from pydantic import Field, SerializeAsAny
from pydantic.fields import FieldInfo

from ghosttune.config.sections.data import DataSettings
from ghosttune.config.sections.evaluate import EvaluateSettings
from ghosttune.config.sections.forget import ForgetSettings
from ghosttune.config.sections.measure import MeasureSettings
from ghosttune.config.sections.model import ModelSettings
from ghosttune.config.sections.run import AlertSettings, RunSettings
from ghosttune.config.sections.train import TrainSettings
from ghosttune.config.setting import MethodSettings, PhasesSettings, Section, TaskSettings
from ghosttune.errors import ConfigError, Problem
from ghosttune.registry import METHODS, STRATEGIES, TASKS, Registry


class RunConfig(Section):
    """A whole run. Two are equal when their settings are, wherever the values came from."""

    model: ModelSettings = ModelSettings()
    method: SerializeAsAny[MethodSettings]
    task: SerializeAsAny[TaskSettings]
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    phases: SerializeAsAny[PhasesSettings]
    """Which modules train when: a plan such as `both@0-300 > mlp@300-`, or a strategy; null: all of them, always."""
    forget: ForgetSettings = ForgetSettings()
    """Which rows of an earlier run are forgotten; null: none, and training starts anew."""
    measure: MeasureSettings = MeasureSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    alerts: AlertSettings = AlertSettings()
    """Who is told when a run goes wrong; null: nobody."""
    run: RunSettings = RunSettings()
    origins: dict[str, str] = Field(default_factory=dict[str, str], exclude=True, repr=False)
    """Where each setting's value came from: `run.yaml:12`, `--set`, `profile cpu@1`, `derived`, `default`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunConfig) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def problem(self, setting: str, message: str) -> Problem:
        """What is wrong with a setting, with the place where its value was given, if it was."""
        origin = self.origins.get(setting, DEFAULT)
        return Problem(setting, message, "" if origin == DEFAULT else origin)

    @contextmanager
    def placing(self) -> Generator[None]:
        """Tells problems found inside, by code that only sees values, where the values were given."""
        try:
            yield
        except ConfigError as error:
            problems = [
                known if known.origin else self.problem(known.setting, known.message) for known in error.problems
            ]
            raise ConfigError(problems) from error


DEFAULT = "default"
"""Origin of a value that nobody chose."""


@dataclass(frozen=True)
class Kinds:
    """How the settings class of a section is chosen."""

    registry: Registry
    key: str
    """The setting that names the class."""
    default: str
    """The name nobody has to choose."""


KINDS = {
    "method": Kinds(METHODS, "type", "lora"),
    "task": Kinds(TASKS, "type", "causal_lm"),
    "phases": Kinds(STRATEGIES, "strategy", "none"),
}
"""Sections with more than one settings class."""

ALTERNATIVES = (
    ("train.max_steps", "train.num_train_epochs"),
    ("data.dev.fraction", "data.dev.split", "data.dev.path"),
    ("data.guide.fraction", "data.guide.split", "data.guide.path"),
    ("data.guide.fraction", "data.guide.rows"),
    ("forget.retain", "forget.retain_rows"),
)
"""Settings of which at most one can hold; choosing one in a later layer drops the others of earlier layers."""

INSTEAD = (
    *((f"data.train.{name}", "data.train.sources") for name in ("name", "path", "format", "columns", "limit")),
    *((f"data.train.{name}", "data.train.temperature") for name in ("name", "path")),
    *((f"data.dev.{name}", "data.dev.sources") for name in ("fraction", "split", "path")),
)
"""Settings that exclude each other, the second of which is a mapping; choosing one in a later layer drops the other."""

IDLE_DEFAULTS = {("train.lr_scheduler_type", "constant"): ("train.warmup_steps", 0)}
"""Choice -> the setting whose default it makes meaningless, and the value that says so."""

DEPENDENT = {
    "measure.ledger.guide_every": (
        "data.guide.fraction",
        "data.guide.split",
        "data.guide.rows",
        "data.guide.path",
        "measure.ledger.values",
        "measure.ledger.guide_subset",
    ),
    "data.online_selection.by": ("data.online_selection.candidates", "data.online_selection.lowest"),
    "data.mixture.by": ("data.mixture.every", "data.mixture.floor", "data.mixture.reference_losses"),
    "alerts.on": ("alerts.webhook", "alerts.command", "alerts.patience"),
    "forget.run": tuple(f"forget.{name}" for name in ForgetSettings.model_fields if name != "run"),
}
"""Switch -> settings that do nothing while it is null; switching it off in a later layer drops earlier layers' ones."""

SWITCHES = {
    "data.online_selection": ("data.online_selection.by",),
    "data.mixture": ("data.mixture.by",),
    "forget": ("forget.run",),
    "alerts": ("alerts.on",),
    "measure.norms": ("measure.norms.every", "measure.norms.effective"),
    "measure.ledger": ("measure.ledger.guide_every",),
    "phases": ("phases.strategy",),
}
"""Groups that null switches off -> the settings that are null then (a choice of class: the default one)."""

SHORTHANDS = {"phases": ("phases.strategy", "plan", "phases.plan")}
"""Sections that one value can stand for -> the setting that chooses the class, that class, and where the value goes."""

SECTIONS = tuple(name for name in RunConfig.model_fields if name != "origins")


def section_class(name: str, kind: str | None = None) -> type[Section]:
    """The settings class of a top-level section; `kind` chooses it where there are several (InputError if unknown)."""
    if name in KINDS:
        return KINDS[name].registry[kind or KINDS[name].default].settings
    return RunConfig.model_fields[name].annotation  # type: ignore[return-value]


def group_of(field: FieldInfo) -> type[Section] | None:
    """The class of a field that is itself a group of settings; None for a setting."""
    inner = field.annotation
    return inner if isinstance(inner, type) and issubclass(inner, Section) else None


def entry_of(field: FieldInfo) -> type[Section] | None:
    """The class of the entries of a setting that maps names to groups of settings; None for any other field."""
    for choice in (field.annotation, *get_args(field.annotation)):
        inner = get_args(choice)[1:] if get_origin(choice) is dict else ()
        if inner and isinstance(inner[0], type) and issubclass(inner[0], Section):
            return inner[0]
    return None


def entry_fields() -> Iterator[tuple[str, FieldInfo]]:
    """(`data.train.sources.NAME.path`, field) of every setting inside of an entry of a mapping."""
    for path, field in leaf_fields():
        entry = entry_of(field)
        if entry is not None:
            yield from _leaves(entry, f"{path}.NAME")


def leaf_fields(kinds: dict[str, str] | None = None) -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of every setting, in file order, for the chosen method and task."""
    for name in SECTIONS:
        yield from _leaves(section_class(name, (kinds or {}).get(name)), name)


def _leaves(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        group = group_of(field)
        if group is not None:
            yield from _leaves(group, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", field
