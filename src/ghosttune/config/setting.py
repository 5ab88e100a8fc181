"""What a setting is, and what the settings of every method, task and strategy have in common.

Help texts, `ghosttune show settings` and the documentation are made from the fields; nothing is described twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from ghosttune.config.schema import RunConfig


class Section(BaseModel):
    """A closed, immutable group of settings; numbers given as text, infinite numbers and NaN are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


def setting(
    default: Any,
    *,
    unit: str = "",
    why: str = "",
    benefit: str = "",
    cost: str = "",
    critical: bool = False,
    **bounds: Any,
) -> Any:
    """A field with what `show settings` prints beside its meaning; `critical` ones must be chosen under --strict.

    `why` there is such a setting, what is gained by setting it well (`benefit`), and what that costs.
    """
    extra: dict[str, Any] = {"unit": unit, "why": why, "benefit": benefit, "cost": cost, "critical": critical}
    return Field(default, json_schema_extra=extra, **bounds)


def told(field: FieldInfo) -> dict[str, Any]:
    """What `setting` was given beside the default: unit, why, benefit, cost, critical; empty for other fields."""
    extra = field.json_schema_extra
    return cast(dict[str, Any], extra) if isinstance(extra, dict) else {}


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
TEXT = r"^[^\p{Cc}]*[^\s\p{Cc}][^\p{Cc}]*$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
FILE_NAME = r"^[^\p{Cc}/\\]*[^\s\p{Cc}/\\.][^\p{Cc}/\\]*$"
DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
ATTENTION = r"^(eager|sdpa|flex_attention|flash_attention_[234]|[\w.-]+/[\w.@:-]+)$"
TEMPLATE = r"\S"
PATTERN_MEANINGS = {
    TEXT: "text that is not empty, without line breaks and control characters",
    VARIABLE: "the name of an environment variable, not what it holds",
    FILE_NAME: "a name without slashes, not empty, without control characters",
    DEVICE: "auto, cpu, cuda or cuda:N",
    ATTENTION: "eager, sdpa, flex_attention, flash_attention_2, _3 or _4, or a kernel of the hub (org/name)",
    TEMPLATE: "the path of a Jinja file, or the text of a template",
}
"""What a pattern accepts, in the words of an error message."""

Text = Annotated[str, Field(pattern=TEXT)]
Names = Annotated[list[Text], Field(min_length=1)]


class MethodSettings(Section):
    """What every method has; each method adds its own settings in `ghosttune/methods/`."""

    type: str
    quantized_base: ClassVar[bool] = True
    """Whether it works on base weights of 8 or 4 bits."""
    usual_rates: ClassVar[tuple[float, float]] = (1e-5, 1e-3)
    """Learning rates that models of width 1,024 and more usually learn with."""

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        """(setting, message) of what this method cannot do together with the rest of the configuration."""
        yield from ()


def method_name(name: str) -> Any:
    """The field that holds a method's own name, `type`."""
    return setting(
        name,
        critical=True,
        why="what trains: a few new matrices, vectors in front of every row, the model's own biases, or all of it",
        benefit="the same rows, measurements and reports serve every method, so that they can be compared",
        cost="`ghosttune check` counts the trained parameters and predicts the memory of each",
    )


def task_name(name: str) -> Any:
    """The field that holds a task's own name, `type`."""
    return setting(
        name,
        why="what the model is asked for decides the head, the loss and the metrics",
        benefit="one file, one run directory and the same instruments for each of them",
        cost="all but causal_lm need rows with columns of their own, and most a new head to be learned",
    )


class TaskSettings(Section):
    """What every task has; each task adds its own settings in `ghosttune/tasks/`."""

    type: str
    answers: ClassVar[bool] = False
    """Whether a prompt is answered in words, which `chat` shows and metrics of answers judge."""
    draws: ClassVar[bool] = False
    """Whether what trains is drawn from the model, and not read from its rows."""
    read_whole: ClassVar[str] = ""
    """Why its rows cannot be streamed; empty where they can."""

    @property
    def repeats(self) -> int:
        """Updates in a row that the rows of a step make."""
        return 1

    @property
    def sequences_per_row(self) -> int:
        """How many sequences of its length a row may be when it trains."""
        return 1

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        """(setting, message) of what this task cannot do together with the rest of the configuration."""
        yield from ()


def strategy_name(name: str) -> Any:
    """The field that holds a strategy's own name, `strategy`."""
    return setting(
        name,
        why="whether what trains should change in the course of the run",
        benefit="layers that are frozen below all that trains cost no backward pass",
        cost="every order tried here was worse than training everything (docs/studies/README.md)",
    )


class PhasesSettings(Section):
    """What every strategy has; each adds its own settings in `ghosttune/schedules/`."""

    strategy: str
