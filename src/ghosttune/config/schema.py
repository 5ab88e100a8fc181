"""Every setting: its type, unit, bounds, one line of meaning, why it is there and what it costs.

Help texts, `ghosttune show settings` and the documentation are made from these fields; nothing is described twice.
The schema is closed: an unknown key is an error. A key is here only if it changes what a run does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny
from pydantic.fields import FieldInfo

from ghosttune.errors import ConfigError, Problem
from ghosttune.registry import METHODS, STRATEGIES, TASKS, Registry


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
    default: Any, *, unit: str = "", why: str = "", cost: str = "", critical: bool = False, **bounds: Any
) -> Any:
    """A field with what `show settings` prints beside its meaning; `critical` ones must be chosen under --strict."""
    extra: dict[str, Any] = {"unit": unit, "why": why, "cost": cost, "critical": critical}
    return Field(default, json_schema_extra=extra, **bounds)


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
TEXT = r"^[^\p{Cc}]*[^\s\p{Cc}][^\p{Cc}]*$"
FILE_NAME = r"^[^\p{Cc}/\\]*[^\s\p{Cc}/\\.][^\p{Cc}/\\]*$"
DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
PATTERN_MEANINGS = {
    TEXT: "text that is not empty, without line breaks and control characters",
    FILE_NAME: "a name without slashes, not empty, without control characters",
    DEVICE: "auto, cpu, cuda or cuda:N",
}
"""What a pattern accepts, in the words of an error message."""

Text = Annotated[str, Field(pattern=TEXT)]
Names = Annotated[list[Text], Field(min_length=1)]


class ModelSettings(Section):
    name: Text = setting(
        "builtin:tiny",
        critical=True,
        why="decides everything else: tokenizer, template, module names",
        cost="memory and time of every step grow with its parameters",
    )
    """Hub id, local folder, or `builtin:tiny` (ships with the package)."""
    init: Literal["pretrained", "random"] = setting("pretrained", why="`random` measures what pretraining contributed")
    """`pretrained` loads the weights; `random` takes only the shape and draws weights from `train.seed`."""
    revision: Text | None = setting(None, why="the same name can hold other weights tomorrow")
    """Branch, tag or commit of a hub id; the resolved commit is recorded."""
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        critical=True,
        why="what the base computes in; float32 rounds least and runs everywhere",
        cost="bfloat16 halves the weights' memory; adapters stay float32",
    )
    """Precision of the base weights."""
    quantization: Literal["none", "int8", "nf4"] = setting(
        "none",
        why="a larger base in the same memory",
        cost="int8 a quarter, nf4 an eighth of float32; each step slower",
    )
    """Bits the base's linear layers are kept in (`pip install 'ghosttune[quant]'`); adapters stay float32."""
    device: Annotated[str, Field(pattern=DEVICE)] = setting(
        "auto",
        critical=True,
        why="`auto` is resolved once, printed and recorded; the others are never changed silently",
        cost="the CPU is slow, and gives the same bytes each time; kernels of a GPU need not",
    )
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    trust_remote_code: bool = setting(False, why="runs Python code that comes with the model; off unless you read it")
    """Whether code shipped inside a model repository may run."""


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
        cost="`ghosttune check` counts the trained parameters and predicts the memory of each",
    )


class TaskSettings(Section):
    """What every task has; each task adds its own settings in `ghosttune/tasks/`."""

    type: str


class PhasesSettings(Section):
    """What every strategy has; each adds its own settings in `ghosttune/schedules/`."""

    strategy: str


class SourceSettings(Section):
    name: Text | None = setting(None, why="a known dataset brings its columns, prompt wording, splits and group key")
    """A known dataset (`ghosttune show datasets`); with `path`, where its files already lie. Or a hub id: `org/name`,
    `org/name:configuration`, with `@revision` behind it to pin what it holds."""
    path: Text | None = setting(
        None,
        critical=True,
        why="nothing is learned but what these rows say",
        cost="all rows are read, checked and encoded before the first update",
    )
    """Your own file or folder (JSONL, JSON, CSV, TSV, Parquet, text; gzip too), or `builtin:rows`."""
    format: Literal[
        "auto",
        "text",
        "prompt_completion",
        "messages",
        "alpaca",
        "labelled_text",
        "labelled_pair",
        "tagged_tokens",
        "question_answering",
    ] = setting("auto")
    """How the columns are meant; `auto` is detected from the columns of all rows, and reported."""
    columns: dict[Text, Text] | None = setting(None, why="your own column names, without editing the file")
    """Needed column -> your column, such as {prompt: question, completion: answer}."""
    limit: Count | None = setting(
        None, unit="rows", why="a fixed sample drawn by row id, not the first rows of the file"
    )
    """Use only this many rows."""
    keep: Text | None = setting(
        None, why="the rows that judge stay the same, so that selections can be compared with each other and with none"
    )
    """Train only on the rows whose ids stand in this file, such as `ghosttune select` writes."""


class DevSettings(Section):
    fraction: Share | None = setting(None, unit="share of rows")
    """Share of the training rows set aside, drawn by group so that duplicates never straddle."""
    split: Text | None = setting(None)
    """A split the source itself has, such as `dev`."""
    path: Text | None = setting(None)
    """A file of its own, in the same format as the training rows."""
    limit: Count | None = setting(None, unit="rows", cost="every dev row is a forward pass at each evaluation")
    """Use only this many dev rows, a fixed sample drawn by row id."""


class GuideSettings(Section):
    fraction: Share | None = setting(None, unit="share of rows")
    """Share of the training rows set aside, drawn by group so that duplicates never straddle."""
    split: Text | None = setting(None)
    """A split the source itself has, such as `guide`; the default where there is one, else a fraction of 0.05."""
    rows: Count | None = setting(
        None, unit="rows", why="more rows make the held-out gradient less noisy", cost="each guide pass runs them all"
    )
    """Exactly this many, drawn from `split` where that is given, else from the training rows."""


class OnlineSelectionSettings(Section):
    by: Literal["value", "loss", "gradient_norm", "random"] | None = setting(
        None,
        why="the rows that would lower the guide loss most, while many others could train; the others are its controls",
        cost="a pass over every candidate: with 4 per row a step takes about three times as long; null for off",
    )
    """What the candidates of a step are chosen by: `value` (what the ledger would credit them with), their loss per
    target, the norm of their gradient, or a draw."""
    candidates: Annotated[int, Field(ge=2)] = setting(
        4, unit="candidates per trained row", why="the more, the better the best of them, and the more alike"
    )
    """Rows that are looked at for each row that trains; a step trains as many rows as without selection."""
    lowest: bool = setting(False, why="rows of low loss or short gradients are those that are not mistakes")
    """Keep the lowest scores in place of the highest."""

    @property
    def offered(self) -> int:
        """Rows that a step takes from the data for each row it trains."""
        return 1 if self.by is None else self.candidates


class DataSettings(Section):
    train: SourceSettings = SourceSettings()
    dev: DevSettings = DevSettings()
    guide: GuideSettings = GuideSettings()
    """Rows that give the held-out gradient of the ledger: not trained on, and not those that choose checkpoints."""
    online_selection: OnlineSelectionSettings = OnlineSelectionSettings()
    """At every step, the best of several candidates train; null for off."""
    template: Literal["auto", "chat", "plain", "turns"] = setting(
        "auto", why="one template renders training rows, evaluation prompts and chat alike"
    )
    """`chat`: the tokenizer's own; `plain`: prompt, then completion; `turns`: `User: …` / `Assistant: …` lines.
    `auto` is `chat` where the tokenizer has a chat template, else `turns` for messages and `plain` for the rest."""
    max_length: Annotated[int, Field(ge=8)] = setting(
        512,
        unit="tokens",
        critical=True,
        why="bounds what one row can take; too short a limit refuses rows, or cuts their context",
        cost="memory and time grow with the longest row of a batch",
    )
    """Longest row; longer ones lose the oldest part of their context, never the answer or its cue."""
    loss_on: Literal["completion", "all"] = setting("completion", why="learning to write prompts wastes the adapter")
    """Which tokens are trained: those the model must produce (with their stop token), or all."""
    truncated_share: Annotated[float, Field(ge=0, le=1)] = setting(0.0, unit="share of rows")
    """Refuse to train when a larger share of rows would have to be cut."""


class TrainSettings(Section):
    max_steps: Count | None = setting(
        300,
        unit="optimizer updates",
        critical=True,
        why="too few and the rows are not learned, too many and they are learned by heart; the best step is kept",
        cost="time grows in proportion",
    )
    """Optimizer updates; or give `num_train_epochs`."""
    num_train_epochs: Annotated[float, Field(gt=0)] | None = setting(None, unit="passes over the training rows")
    """Passes over the training rows, instead of `max_steps`."""
    per_device_train_batch_size: Count = setting(
        8,
        unit="rows",
        critical=True,
        why="more rows make an update less noisy, and use a device better",
        cost="activation memory grows with it",
    )
    """Rows of one micro-batch on one device."""
    per_device_eval_batch_size: Count = setting(32, unit="rows")
    """Rows of one evaluation batch; the numbers do not depend on it."""
    gradient_accumulation_steps: Count = setting(1, unit="micro-batches", cost="a step takes that many times longer")
    """Micro-batches per optimizer update; the loss is weighted by tokens, so the split does not matter."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = setting(
        2.0e-4,
        critical=True,
        why="how far each update goes; LoRA wants about 10x full training's",
        cost="too low wastes the run, too high destroys it: try three values before anything else",
    )
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = setting("cosine")
    """Shape of the learning-rate curve after warm-up, over the whole run."""
    warmup_steps: Annotated[int, Field(ge=0)] = setting(10, unit="optimizer updates")
    """Updates over which the learning rate rises to its peak; must be fewer than the run has."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = setting(0.0)
    """Decoupled weight decay on the trained matrices (biases and norms are exempt)."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = setting(0.9)
    """Decay of AdamW's first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = setting(0.999)
    """Decay of AdamW's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = setting(1.0e-8)
    """Added to the root of AdamW's second moment."""
    max_grad_norm: Annotated[float, Field(ge=0)] = setting(1.0, why="one bad batch cannot throw the run away")
    """Gradients with a larger norm are scaled down to it; 0 turns clipping off."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = setting(
        42,
        critical=True,
        why="the same seed gives the same run; another one shows how much of a result is chance",
        cost="a claim about a setting needs several seeds, each a run of its own",
    )
    """Seeds splits, samples, row order, adapter initialisation and dropout."""
    logging_steps: Count | None = setting(None, unit="optimizer updates")
    """Interval of training-loss records; unset: a fiftieth of the run."""
    eval_steps: Count | None = setting(None, unit="optimizer updates", cost="one forward pass over the dev rows each")
    """Interval of dev evaluations; unset: a tenth of the run."""
    save_steps: Count | None = setting(None, unit="optimizer updates")
    """Interval of checkpoints to resume from; unset: as `eval_steps`. A new best evaluation is saved as well."""
    save_total_limit: Count = setting(2, unit="checkpoints", cost="disk: about three times the adapter each")
    """Newest checkpoints kept; the best one is kept besides."""
    early_stopping_patience: Count | None = setting(None, unit="evaluations")
    """Stop after this many dev evaluations in a row that did not improve on the best."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = setting(0.0, unit="nats per target")
    """How much lower the dev loss must be to count as an improvement for early stopping."""
    activation_checkpointing: bool = setting(False, cost="about a third more time for much less activation memory")
    """Recompute activations in the backward pass (non-reentrant)."""


class NormsSettings(Section):
    every: Count | None = setting(1, unit="optimizer updates", cost="under 2 % of a step; null for off")
    """Record the gradient's norms, complete and before clipping, at the first update and every so many after it."""
    layers: bool = setting(True)
    """One norm per module and factor (and the file of norms per layer); else one per group."""
    effective: Count | None = setting(
        10,
        unit="optimizer updates",
        why="the adapter's own norms change with r and alpha, these do not",
        cost="one weight gradient per adapted module on measured steps, in time and memory; null for off",
    )
    """Interval of effective norms: the gradient norm of each adapted weight itself."""


class LedgerSettings(Section):
    guide_every: Count | None = setting(
        10,
        unit="optimizer updates",
        why="1 makes the account exact to second order; larger values are cheaper and approximate curvature",
        cost="one forward and backward pass over the guide rows each; null for off",
    )
    """Take the held-out gradient anew every so many updates."""
    guide_subset: Annotated[int, Field(ge=4)] | None = setting(
        None,
        unit="rows",
        why="many guide rows at the price of few, and a standard error for every module; unset: all rows every time",
        cost="one more copy of the trained parameters; each guide gradient is noisier",
    )
    """Guide passes see at most this many guide rows each, in subsets that take turns."""
    values: Literal["adamw", "sgd"] = setting("adamw", why="what a row did through the optimizer that runs")
    """What a row's value is of: the step that AdamW makes, or a plain gradient step."""


class MeasureSettings(Section):
    norms: NormsSettings = NormsSettings()
    """Gradient norms; null for off."""
    ledger: LedgerSettings = LedgerSettings()
    """Which modules and which rows lowered the guide loss; null for off."""


class EvaluateSettings(Section):
    metrics: Literal["auto"] | Names = setting("auto", why="each number comes with n, an interval and its baselines")
    """Metrics of the answers (`ghosttune show metrics`), or `auto`: those of the known dataset, else `exact_match` and
    `chrf`. `stopped` always stands beside them."""
    limit: Annotated[int, Field(ge=0)] | None = setting(
        100, unit="prompts", cost="one generated answer per prompt, twice"
    )
    """Dev prompts answered at the end by the base and by the adapter; null for all, 0 for none. Rows with the same
    prompt are one, with all their references."""
    max_new_tokens: Count = setting(128, unit="tokens")
    """Longest generated answer."""
    synonyms: Text | None = setting(None, why="METEOR without them compares words and stems only")
    """Folder with `*synonyms.tsv` (lines of synset, tab, words) for `meteor`."""
    tables: Text | None = setting(None)
    """File or folder of `*.tables.jsonl` in WikiSQL's form, on which `sql_execution` runs queries."""
    general_text: Text | None = setting(
        None, why="shows what tuning made the model forget", cost="two forward passes over 16,384 tokens"
    )
    """File of general text (rows of `text`), whose loss is compared before and after."""


EVALUATION_FILES = ("evaluate.synonyms", "evaluate.tables", "evaluate.general_text")
"""Settings that name files which only an evaluation reads."""


class RunSettings(Section):
    name: Annotated[str, Field(pattern=FILE_NAME)] | None = setting(None)
    """Name of the run directory below `root`; unset: data, model, method and time."""
    root: Text = setting("runs")
    """Folder that holds run directories."""
    trackers: list[Literal["tensorboard", "wandb"]] = setting([], why="metrics.jsonl is the record; trackers subscribe")
    """External trackers that receive the same numbers."""


class RunConfig(Section):
    """A whole run. Two are equal when their settings are, wherever the values came from."""

    model: ModelSettings = ModelSettings()
    method: SerializeAsAny[MethodSettings]
    task: SerializeAsAny[TaskSettings]
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    phases: SerializeAsAny[PhasesSettings]
    """Which modules train when: a plan such as `both@0-300 > mlp@300-`, or a strategy; null: all of them, always."""
    measure: MeasureSettings = MeasureSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    run: RunSettings = RunSettings()
    origins: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)
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
    def placing(self) -> Iterator[None]:
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
    ("data.guide.fraction", "data.guide.split"),
    ("data.guide.fraction", "data.guide.rows"),
)
"""Settings of which at most one can hold; choosing one in a later layer drops the others of earlier layers."""

IDLE_DEFAULTS = {("train.lr_scheduler_type", "constant"): ("train.warmup_steps", 0)}
"""Choice -> the setting whose default it makes meaningless, and the value that says so."""

DEPENDENT = {
    "measure.ledger.guide_every": (
        "data.guide.fraction",
        "data.guide.split",
        "data.guide.rows",
        "measure.ledger.values",
        "measure.ledger.guide_subset",
    ),
    "data.online_selection.by": ("data.online_selection.candidates", "data.online_selection.lowest"),
}
"""Switch -> settings that do nothing while it is null; switching it off in a later layer drops earlier layers' ones."""

SWITCHES = {
    "data.online_selection": ("data.online_selection.by",),
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
