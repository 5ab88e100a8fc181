"""What is wrong with a configuration beyond single values: combinations that cannot work or would do nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from operator import attrgetter

from ghosttune.config.schema import DEFAULT, DEPENDENT, KINDS, RunConfig, leaf_fields
from ghosttune.config.sections.data import MixedSettings, RowsSettings, SourceSettings
from ghosttune.config.sections.forget import ForgetSettings
from ghosttune.config.sections.run import AlertSettings
from ghosttune.config.sections.train import ADAMW, TrainSettings
from ghosttune.config.setting import told
from ghosttune.config.streams import what_a_stream_lacks
from ghosttune.errors import InputError, Problem, listed
from ghosttune.own_code import is_own_code
from ghosttune.registry import DATASETS, METRICS, STRATEGIES

Found = Iterator[tuple[str, str]]

MOMENTS = ("adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass(frozen=True)
class Rule:
    """One kind of impossible or idle combination."""

    compares_with: tuple[str, ...]
    """Settings whose values the messages rely on; while one of them is wrong itself, the rule says nothing."""
    find: Callable[[RunConfig], Found]
    """(setting, message) of each case."""


RULES: list[Rule] = []


def rule(*compares_with: str) -> Callable[[Callable[[RunConfig], Found]], Callable[[RunConfig], Found]]:
    """Enters a function into RULES."""

    def enter(find: Callable[[RunConfig], Found]) -> Callable[[RunConfig], Found]:
        RULES.append(Rule(compares_with, find))
        return find

    return enter


def conflicts(config: RunConfig, wrong: Set[str] = frozenset()) -> list[Problem]:
    """Every impossible or idle combination; `wrong` settings are reported already."""
    return [
        config.problem(setting, message)
        for rule in RULES
        if not any(_reported(setting, wrong) for setting in rule.compares_with)
        for setting, message in rule.find(config)
        if not _reported(setting, wrong)
    ]


def unchosen(config: RunConfig, wrong: Set[str] = frozenset()) -> list[Problem]:
    """The critical settings left at a default that nobody chose (what --strict refuses)."""
    kinds = {name: getattr(getattr(config, name), of.key) for name, of in KINDS.items()}
    message = "must be chosen under --strict: set it in the file, a preset, a profile or with --set"
    return [
        Problem(path, message)
        for path, field in leaf_fields(kinds)
        if told(field).get("critical")
        if config.origins.get(path) == DEFAULT and path not in _settled_otherwise(config) and not _reported(path, wrong)
    ]


def _reported(setting: str, wrong: Set[str]) -> bool:
    """Whether the setting, its group or something in its value is among the wrong ones."""
    return any(f"{setting}.".startswith(f"{known}.") or known.startswith(f"{setting}.") for known in wrong)


def _settled_otherwise(config: RunConfig) -> set[str]:
    """Critical settings whose question another setting answers."""
    settled = {
        "train.max_steps": config.train.num_train_epochs is not None,
        "data.train.path": config.data.train.name is not None or config.data.train.sources is not None,
    }
    return {path for path, is_settled in settled.items() if is_settled}


@rule("method", "train.max_steps", "train.activation_checkpointing", "model.dtype", "phases")
def _what_the_method_cannot_do(config: RunConfig) -> Found:
    yield from config.method.conflicts(config)


@rule("task", "data.loss_on")
def _what_the_task_cannot_do(config: RunConfig) -> Found:
    yield from config.task.conflicts(config)


@rule("model.quantization", "method")
def _what_quantization_leaves(config: RunConfig) -> Found:
    if config.model.quantization == "none":
        return
    if config.model.init == "random":
        yield "model.init", "must be pretrained with model.quantization: random weights are nobody's to keep small"
    if not config.method.quantized_base:
        message = (
            f"{config.method.type} needs the weights themselves, which model.quantization takes; use lora, or none"
        )
        yield "model.quantization", message


@rule("train.fsdp", "method", "model.quantization", "measure.norms.effective")
def _what_is_shared_out(config: RunConfig) -> Found:
    if not config.train.fsdp:
        return
    if config.method.type == "full":
        yield "train.fsdp", "shares out what is frozen, and method.type: full trains all of it; set it to false"
    if config.model.quantization != "none":
        yield "train.fsdp", f"cannot share out weights in {config.model.quantization}; set it to false"
    if config.measure.norms.effective is not None:
        yield "measure.norms.effective", "is of the base's weights, which train.fsdp shares out; set it to null"
    begins = getattr(config.method, "init_lora_weights", "default")
    if begins not in ("default", "gaussian", "orthogonal"):
        yield (
            "train.fsdp",
            f"shares out what method.init_lora_weights: {begins} reads or changes whole; set it to false",
        )


@rule("train.max_steps", "train.num_train_epochs")
def _one_run_length(config: RunConfig) -> Found:
    train = config.train
    if train.max_steps is not None and train.num_train_epochs is not None:
        yield "train.num_train_epochs", "excludes train.max_steps; keep one"
    if train.max_steps is None and train.num_train_epochs is None:
        yield "train.max_steps", "is null and so is train.num_train_epochs; give one"


@rule("train.max_steps")
def _warmup_inside_the_run(config: RunConfig) -> Found:
    steps, warmup = config.train.max_steps, config.train.warmup_steps
    if steps is not None and warmup >= steps:
        yield (
            "train.warmup_steps",
            f"must be fewer than the run's {_steps(steps)} (got {warmup}): the peak learning rate would never be "
            f"reached; {steps // 10} would be a tenth of the run",
        )


@rule("train.lr_scheduler_type")
def _warmup_with_a_curve(config: RunConfig) -> Found:
    if config.train.warmup_steps and config.train.lr_scheduler_type == "constant":
        yield (
            "train.warmup_steps",
            "does nothing with train.lr_scheduler_type: constant; use constant_with_warmup, or 0",
        )


@rule("train.max_steps")
def _intervals_inside_the_run(config: RunConfig) -> Found:
    steps = config.train.max_steps
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = getattr(config.train, name)
        if steps is not None and value is not None and value > steps:
            yield f"train.{name}", f"must be at most the run's {_steps(steps)} (got {value}): it would never happen"


@rule("train.early_stopping_patience")
def _threshold_with_patience(config: RunConfig) -> Found:
    if config.train.early_stopping_threshold > 0 and config.train.early_stopping_patience is None:
        yield "train.early_stopping_threshold", "does nothing without train.early_stopping_patience"


@rule("train.max_steps", "train.eval_steps")
def _stopping_can_happen(config: RunConfig) -> Found:
    train = config.train
    if train.early_stopping_patience is None or train.max_steps is None or train.eval_steps is None:
        return
    evaluations = math.ceil(train.max_steps / train.eval_steps)
    most = evaluations - 2  # the first one sets the mark, and after the last one the run is over anyway
    if train.early_stopping_patience > most:
        remedy = f"at most {most} can act" if most > 0 else "lower train.eval_steps"
        yield (
            "train.early_stopping_patience",
            f"can never act: the run has {evaluations} evaluation{'s' if evaluations != 1 else ''} "
            f"(got {train.early_stopping_patience}); {remedy}",
        )


@rule("train.max_steps")
def _phases_inside_the_run(config: RunConfig) -> Found:
    if config.train.max_steps is None:
        return
    try:
        STRATEGIES[config.phases.strategy].build(config.phases, config.train.max_steps)
    except ValueError as error:
        place = next(name for name in ("plan", "boundaries", "period") if hasattr(config.phases, name))
        yield f"phases.{place}", f"cannot be followed: {error}"


@rule("measure.norms.effective", "measure.ledger.guide_every")
def _a_signal_that_is_measured(config: RunConfig) -> Found:
    signal = getattr(config.phases, "signal", None)
    needed = {"effective": config.measure.norms.effective, "ledger": config.measure.ledger.guide_every}
    settings = {"effective": "measure.norms.effective", "ledger": "measure.ledger.guide_every"}
    if signal is not None and needed[signal] is None:
        yield "phases.signal", f"is {signal}, which nothing measures while {settings[signal]} is null"
    elif signal is not None and needed[signal] > config.phases.period:  # type: ignore[attr-defined]
        yield (
            "phases.signal",
            f"is {signal}, which is measured every {needed[signal]} updates, less often than phases.period asks for it",
        )


@rule("data.dev.fraction", "data.dev.split", "data.dev.path", "data.dev.sources")
def _one_dev_source(config: RunConfig) -> Found:
    given = [name for name in ("fraction", "split", "path", "sources") if getattr(config.data.dev, name) is not None]
    if len(given) > 1:
        yield f"data.dev.{given[-1]}", f"excludes {' and '.join(f'data.dev.{name}' for name in given[:-1])}; keep one"


@rule("data.dev.sources")
def _dev_sets_that_are_read(config: RunConfig) -> Found:
    sources = config.data.dev.sources
    if sources == {}:
        yield "data.dev.sources", "names no dev set; give one or more, such as {chat: {path: chat-dev.jsonl}}"
    yield from _read_once("data.dev.sources", sources or {})


@rule()
def _dev_rows_of_their_own(config: RunConfig) -> Found:
    if config.data.dev.split == "train":
        yield "data.dev.split", "is what the run trains on; use data.dev.fraction to set some of it aside"


@rule("data.guide.fraction", "data.guide.split", "data.guide.rows", "data.guide.path")
def _one_guide_source(config: RunConfig) -> Found:
    guide = config.data.guide
    for name in ("split", "rows", "path"):
        if guide.fraction is not None and getattr(guide, name) is not None:
            yield f"data.guide.{name}", "excludes data.guide.fraction; keep one"
    if guide.split is not None and guide.path is not None:
        yield "data.guide.path", "excludes data.guide.split; keep one"


@rule("data.dev.split")
def _guide_rows_of_their_own(config: RunConfig) -> Found:
    split = config.data.guide.split
    if split == "train":
        yield "data.guide.split", "is what the run trains on; use data.guide.fraction to set some of it aside"
    elif split == "test":
        yield "data.guide.split", "is what judges when all is chosen; set rows aside with data.guide.fraction instead"
    elif split is not None and split == config.data.dev.split:
        yield "data.guide.split", f"is {split}, which chooses checkpoints; the two judge the run independently"


def _idle(switch: str, config: RunConfig) -> Found:
    if attrgetter(switch)(config) is not None:
        return
    fields = dict(leaf_fields())
    for path in DEPENDENT[switch]:
        if attrgetter(path)(config) != fields[path].default:
            yield path, f"does nothing while {switch} is null; leave it out, or set that"


@rule("measure.ledger.guide_every")
def _guide_rows_for_a_ledger(config: RunConfig) -> Found:
    yield from _idle("measure.ledger.guide_every", config)


@rule("data.online_selection.by")
def _options_of_a_selection(config: RunConfig) -> Found:
    yield from _idle("data.online_selection.by", config)


@rule("data.online_selection.by")
def _no_lowest_draw(config: RunConfig) -> Found:
    selection = config.data.online_selection
    if selection.lowest and selection.by == "random":
        yield "data.online_selection.lowest", "means nothing for a random draw; leave it out"


@rule("data.online_selection.by", "measure.ledger.guide_every")
def _values_to_select_by(config: RunConfig) -> Found:
    if config.data.online_selection.by == "value" and config.measure.ledger.guide_every is None:
        yield (
            "data.online_selection.by",
            "is value, which the guide gradient of the ledger tells; set measure.ledger.guide_every, or choose by "
            "loss, gradient_norm or random",
        )


@rule("data.mixture.by")
def _options_of_learnt_weights(config: RunConfig) -> Found:
    yield from _idle("data.mixture.by", config)


@rule("data.mixture.by", "data.mixture.reference_losses", "data.train.sources", "measure.ledger.guide_every")
def _weights_that_can_be_learnt(config: RunConfig) -> Found:
    by, sources = config.data.mixture.by, config.data.train.sources
    if by is None:
        return
    if len(sources or ()) < 2:
        yield (
            "data.mixture.by",
            "is for the weights of several sources; name two or more in data.train.sources, or null",
        )
    if by == "guide" and config.measure.ledger.guide_every is None:
        yield (
            "data.mixture.by",
            "is guide, whose gradient the ledger takes; set measure.ledger.guide_every, or learn by odm",
        )
    if (by == "doremi") == (config.data.mixture.reference_losses is None):
        yield (
            "data.mixture.reference_losses",
            "is missing: give the losses of a run on the same sources, as `ghosttune select RUN --by loss --above 0 "
            "--out FILE` writes them"
            if by == "doremi"
            else f"does nothing for data.mixture.by: {by}; leave it out, or learn by doremi",
        )


@rule("data.mixture.by", "data.online_selection.by", "train.order", "forget.run")
def _one_who_says_what_trains(config: RunConfig) -> Found:
    """Learnt weights decide which rows come next, as all of these do."""
    others = {
        "data.online_selection.by": (config.data.online_selection.by, None),
        "train.order": (config.train.order, "random"),
        "forget.run": (config.forget.run, None),
    }
    for setting, (value, off) in others.items():
        if config.data.mixture.by is not None and value != off:
            message = f"cannot be with {setting}: {value}, which says otherwise which rows train; keep one of the two"
            yield "data.mixture.by", message


@rule("data.mixture.by", "train.max_steps")
def _weights_change_inside_the_run(config: RunConfig) -> Found:
    mixture, steps = config.data.mixture, config.train.max_steps
    if mixture.by is not None and steps is not None and mixture.every >= steps:
        yield (
            "data.mixture.every",
            f"must be fewer than the run's {_steps(steps)} (got {mixture.every}): the weights would never change",
        )


@rule("train.order")
def _scores_that_order(config: RunConfig) -> Found:
    train = config.train
    if train.order == "random":
        for name, idle in (("order_descending", False), ("order_scores", None)):
            if getattr(train, name) != idle:
                yield f"train.{name}", "does nothing for train.order: random; use loss or value, or leave it out"
        return
    if train.group_by_length:
        yield (
            "train.group_by_length",
            f"cannot be with train.order: {train.order}, which it would undo; set it to false",
        )
    if train.order == "length" and train.order_scores is not None:
        yield "train.order_scores", "does nothing for train.order: length; use loss or value, or leave it out"
    if train.order == "value" and train.order_scores is None:
        yield "train.order_scores", "is missing: give the run whose ledger tells the values, or a file of scores"


@rule("alerts.on")
def _somebody_to_tell(config: RunConfig) -> Found:
    yield from _idle("alerts.on", config)
    alerts = config.alerts
    if alerts.on is not None and alerts.webhook is None and alerts.command is None:
        yield "alerts.on", "tells nobody: give alerts.webhook or alerts.command, or leave it out"
    if alerts.on is not None and "plateau" not in alerts.on and alerts.patience != AlertSettings().patience:
        yield "alerts.patience", "does nothing without plateau in alerts.on"


@rule("forget.run")
def _something_to_forget(config: RunConfig) -> Found:
    yield from _idle("forget.run", config)
    forget = config.forget
    if forget.run is not None and forget.rows is None:
        yield "forget.rows", "is missing: give the file of the ids to forget"
    if forget.retain is not None and forget.retain_rows is not None:
        yield "forget.retain_rows", "excludes forget.retain; keep one"
    if forget.retain_rows == 0 and forget.retain_weight != ForgetSettings().retain_weight:
        yield "forget.retain_weight", "does nothing with forget.retain_rows: 0"
    if forget.loss == "gradient_ascent" and forget.beta != ForgetSettings().beta:
        yield "forget.beta", "does nothing for forget.loss: gradient_ascent; it is for npo"


@rule("forget.run", "task.type", "train.packing", "data.online_selection.by", "train.early_stopping_patience")
def _how_rows_are_forgotten(config: RunConfig) -> Found:
    if config.forget.run is None:
        return
    if config.task.type in ("preference", "reward"):
        yield "forget.run", f"is for tasks whose rows have a likelihood, and those of {config.task.type} are compared"
    if config.train.packing:
        yield "train.packing", "cannot be while rows are forgotten, whose losses differ: set it to false"
    if config.data.online_selection.by is not None:
        yield "data.online_selection.by", "cannot be while rows are forgotten: all of them are; set it to null"
    if config.train.early_stopping_patience is not None:
        message = "looks at the dev loss, which says nothing of what is forgotten; use forget.until"
        yield "train.early_stopping_patience", message


@rule("measure.norms.every")
def _layers_of_norms(config: RunConfig) -> Found:
    if config.measure.norms.every is None and not config.measure.norms.layers:
        yield "measure.norms.layers", "does nothing without measure.norms.every"


@rule("model.trust_remote_code")
def _code_of_a_kernel(config: RunConfig) -> Found:
    attention = config.model.attention
    if attention is not None and "/" in attention and not config.model.trust_remote_code:
        message = (
            f"is {attention}, code from the hub that would run here; read it, then set model.trust_remote_code: true"
        )
        yield "model.attention", message


@rule("train.optim")
def _a_step_the_ledger_knows(config: RunConfig) -> Found:
    optim, choices = config.train.optim, " or ".join(ADAMW)
    if optim not in ADAMW and config.measure.ledger.guide_every is not None:
        yield (
            "measure.ledger.guide_every",
            f"is for AdamW's step in torch, and train.optim is {optim}; set it to null, or train.optim to {choices}",
        )


@rule("train.optim")
def _moments_that_are_kept(config: RunConfig) -> Found:
    """Adafactor has decays of its own, and a plain step none; Lion divides by nothing, and Muon by a matrix."""
    optim = config.train.optim
    unused = MOMENTS if optim in ("adafactor", "muon", "sgd") else MOMENTS[2:] if optim.startswith("lion") else ()
    for name in unused:
        if getattr(config.train, name) != TrainSettings.model_fields[name].default:
            yield f"train.{name}", f"does nothing with train.optim: {optim}; leave it out"


@rule("train.optim", "train.lr_scheduler_type")
def _an_average_instead_of_a_schedule(config: RunConfig) -> Found:
    """Its updates are counted for all tensors together."""
    if config.train.optim != "schedule_free_adamw":
        return
    shape, steady = config.train.lr_scheduler_type, ("constant", "constant_with_warmup")
    if shape not in steady:
        yield (
            "train.lr_scheduler_type",
            f"is {shape}, and train.optim: schedule_free_adamw averages weights in place of a rate that falls; set it "
            f"to {' or '.join(steady)}",
        )
    if config.phases.strategy != "none":
        yield (
            "phases.strategy",
            "gives tensors different numbers of updates, and train.optim: schedule_free_adamw counts those of all "
            "together; set it to none, or train.optim to adamw_torch",
        )


@rule("task.type", "method.type")
def _rows_that_can_be_packed(config: RunConfig) -> Found:
    if not config.train.packing:
        return
    if config.task.type != "causal_lm":
        yield (
            "train.packing",
            f"is for task.type causal_lm; {config.task.type} reads each row as a whole: set it to false",
        )
    elif hasattr(config.method, "num_virtual_tokens"):
        yield (
            "train.packing",
            f"cannot be with {config.method.type}, whose learned prompt stands in front of a sequence and not of each "
            "of its rows: set it to false, or use lora",
        )


@rule("data.train.name", "data.train.path", "data.train.sources")
def _a_training_source(config: RunConfig) -> Found:
    train = config.data.train
    if train.sources is None and train.name is None and train.path is None:
        yield "data.train.path", "is missing: give your own file, or data.train.name of a known dataset"


@rule("data.train.streaming")
def _what_a_stream_can_do(config: RunConfig) -> Found:
    train = config.data.train
    if train.streaming:
        yield from what_a_stream_lacks(config)
    elif train.shuffle_buffer != SourceSettings.model_fields["shuffle_buffer"].default:
        yield "data.train.shuffle_buffer", "does nothing without data.train.streaming; leave it out, or set that"


@rule("data.train.name")
def _a_known_dataset(config: RunConfig) -> Found:
    for setting, source in (config.data.train.parts | config.data.dev.parts).items():
        if source.name is not None:
            yield from _what_a_dataset_brings(setting, source, source.name)


def _what_a_dataset_brings(setting: str, source: RowsSettings, name: str) -> Found:
    if "/" in name:
        if source.path is not None:
            yield f"{setting}.path", f"does nothing for the hub id {name}; keep one of the two"
        return
    try:
        DATASETS[name]
    except InputError as error:
        yield f"{setting}.name", str(error)
        return
    for own, is_given in (("format", source.format != "auto"), ("columns", source.columns is not None)):
        if is_given:
            yield f"{setting}.{own}", f"does nothing for the known dataset {name}, which brings its own"


@rule()
def _one_source_or_several(config: RunConfig) -> Found:
    train = config.data.train
    if train.sources is None:
        if train.temperature is not None:
            yield "data.train.temperature", "does nothing without data.train.sources"
        return
    if not train.sources:
        yield "data.train.sources", "names no source; give one or more, such as {chat: {path: chat.jsonl}}"
    for name, field in RowsSettings.model_fields.items():
        if getattr(train, name) != field.default:
            yield f"data.train.{name}", f"does nothing beside data.train.sources; give each source its own {name}"
    yield from _how_sources_are_mixed(train.sources, train.temperature)
    yield from _read_once("data.train.sources", train.sources)


def _read_once(place: str, sources: Mapping[str, RowsSettings]) -> Found:
    """Sources that read nothing, or what another one reads."""
    read: dict[str, str] = {}
    for name, source in sources.items():
        if source.name is None and source.path is None:
            yield f"{place}.{name}.path", "is missing: give your own file, or the name of a known dataset"
            continue
        rows = repr((source.name, source.path, source.format, source.columns))
        if rows in read:
            yield f"{place}.{name}", f"reads the same rows as {place}.{read[rows]}; keep one of the two"
        read.setdefault(rows, name)


def _how_sources_are_mixed(sources: Mapping[str, MixedSettings], temperature: float | None) -> Found:
    weighted = [name for name, source in sources.items() if source.weight is not None]
    if weighted and temperature is not None:
        yield "data.train.temperature", f"excludes weights, and {listed(weighted)} has one; keep one of the two"
    for name, source in sources.items():
        place = f"data.train.sources.{name}"
        if weighted and source.weight is None:
            yield f"{place}.weight", f"is missing: {listed(weighted)} has one; give every source one, or none"
        if source.repeat > 1 and (weighted or temperature is not None):
            other = "weights" if weighted else "data.train.temperature"
            yield f"{place}.repeat", f"excludes {other}, by which the sources' shares are fixed; keep one of the two"


@rule()
def _known_metrics(config: RunConfig) -> Found:
    chosen = [] if config.evaluate.metrics == "auto" else config.evaluate.metrics
    for name in chosen:
        if is_own_code(name):  # looked at by what runs it: a run is opened without its metrics
            continue
        try:
            METRICS[name]
        except InputError as error:
            yield "evaluate.metrics", str(error)
    if len(set(chosen)) < len(chosen):
        yield "evaluate.metrics", "names a metric twice; once is enough"


@rule("evaluate.metrics")
def _files_of_metrics(config: RunConfig) -> Found:
    if config.evaluate.metrics == "auto":
        return
    if "sql_execution" in config.evaluate.metrics and config.evaluate.tables is None:
        yield "evaluate.tables", "is missing: sql_execution runs queries on the rows' own tables"
    chosen = [*config.evaluate.metrics, *getattr(config.task, "rewards", ())]
    for name, metric in (("synonyms", "meteor"), ("tables", "sql_execution")):
        if getattr(config.evaluate, name) is not None and metric not in chosen:
            yield f"evaluate.{name}", f"does nothing without {metric} in evaluate.metrics"


@rule("evaluate.shots")
def _examples_in_prompts(config: RunConfig) -> Found:
    if config.evaluate.shots and config.data.train.streaming:
        yield "evaluate.shots", "shows training rows, and with data.train.streaming they come one by one; set it to 0"
    if config.evaluate.shots and not config.task.answers:
        yield (
            "evaluate.shots",
            f"does nothing for {config.task.type}, whose rows are not prompts that an answer follows",
        )


@rule("evaluate.limit")
def _evaluation_at_all(config: RunConfig) -> Found:
    if config.evaluate.limit != 0:
        return
    for name, off in (("metrics", "auto"), ("synonyms", None), ("tables", None), ("shots", 0)):
        if getattr(config.evaluate, name) != off:
            yield f"evaluate.{name}", "does nothing with evaluate.limit: 0"


@rule()
def _each_column_once(config: RunConfig) -> Found:
    for setting, source in config.data.train.parts.items():
        theirs = list((source.columns or {}).values())
        for name in sorted({name for name in theirs if theirs.count(name) > 1}):
            yield f"{setting}.columns", f"uses the column {name!r} {theirs.count(name)} times; one column is one thing"


@rule("model.name")
def _revision_of_a_hub_id(config: RunConfig) -> Found:
    if config.model.revision is not None and config.model.name.startswith(("builtin:", "/", ".", "~")):
        yield "model.revision", f"does nothing for {config.model.name}, which is not a hub id"


def _steps(count: int) -> str:
    return f"{count} step{'s' if count != 1 else ''}"
