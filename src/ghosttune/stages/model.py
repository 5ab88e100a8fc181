"""The model that a run trains: the base on its device with its adapter, and how the adapter begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from ghosttune.config.facts import ParameterFacts
from ghosttune.config.resolve import Refuse, refuse
from ghosttune.data.images import ImageEncoder
from ghosttune.data.templates import Template
from ghosttune.errors import ConfigError, Problem
from ghosttune.models.loading import add_adapter, device_of, load_model, longest_input, untrained_twins
from ghosttune.models.modules import blocks_of, module_facts, parameter_facts, trainable_counts
from ghosttune.models.upstream import faults_of
from ghosttune.registry import STRATEGIES
from ghosttune.schedules.language import PlanError
from ghosttune.stages.prepare import Prepared
from ghosttune.training.initialising import WAYS, Initialisation
from ghosttune.training.optimizers import unfit_for_optimizer, unmet_by_optimizer
from ghosttune.training.packed import why_not_packed
from ghosttune.training.phasing import Phasing
from ghosttune.training.processes import processes
from ghosttune.training.referring import Reference
from ghosttune.training.sharding import share_out


@dataclass(frozen=True)
class Adapted:
    """A model with its adapter, on its device."""

    model: Any
    counts: dict[str, int]
    """Trainable parameters per group."""
    facts: dict[str, ParameterFacts]
    """Where each trainable parameter belongs."""
    layers: int
    """How many the model has."""


def adapted_model(prepared: Prepared, refuse: Refuse = refuse) -> Adapted:
    """The model that trains; ConfigError or ModelError when it does not fit the method.

    `refuse` is told of settings that do not fit the model.
    """
    config = prepared.config
    kind = prepared.task.kind(prepared.encoder.tokenizer)
    refuse(list(unmet_by_optimizer(config)))
    with config.placing():
        base = load_model(config.model, config.train.seed, kind)
    limit, longest = longest_input(base), longest_row(prepared)
    limit = None if limit is None else limit - getattr(config.method, "num_virtual_tokens", 0)
    if limit is not None and longest > limit:
        message = f"lets rows of {longest} tokens through, and the model reads at most {limit}; set it to {limit}"
        refuse([config.problem("data.max_length", message)])
    if prepared.template is not None and config.method.type != "full":
        refuse(_stop_token_problems(base, prepared.template, prepared))
    if isinstance(prepared.encoder, ImageEncoder):
        prepared.encoder.images.require_seen_by(base)
    facts, blocks = module_facts(base), blocks_of(base)
    with config.placing():
        model = add_adapter(base, config.method, config.train.seed, kind)
    refuse(list(unfit_for_optimizer(config, model)))
    counts = trainable_counts(model, facts)
    layers = 1 + max(fact.layer for fact in facts if fact.layer is not None)
    if config.train.fsdp:
        share_out(model, blocks, device_of(config.model))
    model = model.to(device_of(config.model))
    if config.train.packing and (limit is None or longest <= limit):
        refuse(_packing_problems(prepared, model))
    return Adapted(model, counts, parameter_facts(model, facts), layers)


def _packing_problems(prepared: Prepared, model: Any) -> list[Problem]:
    """Why rows cannot be packed for this model, which is asked with two rows of middling length."""
    config, features = prepared.config, prepared.train.features
    if isinstance(prepared.encoder, ImageEncoder):
        return [config.problem("train.packing", "is for rows of text, and these show images: set it to false")]
    by_length = np.argsort([len(row) for row in features], kind="stable")
    middle = max(1, len(by_length) // 2)
    rows = [features[place] for place in by_length[middle - 1 : middle + 1]]
    reason = why_not_packed(prepared.task, model, prepared.collator, rows)
    if reason is None:
        return []
    kind = model.config.model_type
    message = f"cannot be with {config.model.name} ({kind}): in one sequence, {reason}; set it to false"
    return [config.problem("train.packing", message)]


def _stop_token_problems(base: Any, template: Template, prepared: Prepared) -> list[Problem]:
    """Why answers could not learn to stop: the base never learned the stop token, and nothing would train it."""
    method = prepared.config.method
    stop = template.tokenizer.convert_tokens_to_ids(template.stop_token)
    twins = untrained_twins(base, [stop])
    if not twins or stop in (getattr(method, "trainable_token_indices", None) or []):
        return []
    message = (
        f"the base never learned the stop token {template.stop_token}, whose row is the same as that of {twins[stop]} "
        "other tokens, so that answers could not learn to stop"
    )
    if hasattr(method, "trainable_token_indices"):
        return [prepared.config.problem("method.trainable_token_indices", f"must hold {stop}: {message}")]
    remedy = f"use lora with trainable_token_indices: [{stop}], or full"
    return [prepared.config.problem("method.type", f"cannot be {method.type}: {message}; {remedy}")]


def longest_row(prepared: Prepared) -> int:
    """Positions that the longest row of all splits takes; of a stream, that a row may take."""
    if prepared.stream is not None:
        return prepared.config.data.max_length
    return max(row.positions for split in (prepared.train, prepared.dev, prepared.guide) for row in split.features)


def initialisation_of(prepared: Prepared, adapted: Adapted) -> Initialisation | None:
    """What training rows decide of the adapter before its first update; None where they decide nothing.

    ConfigError where the rows it may look at are too short for it.
    """
    method, rows = prepared.config.method, prepared.train.features
    name = getattr(method, "init_lora_weights", None)
    if name not in WAYS:
        return None
    first = [rows[place] for place in islice(prepared.order(), method.init_rows)]  # type: ignore[attr-defined]
    device = device_of(prepared.config.model)
    made = Initialisation(name, adapted.model, prepared.task, prepared.collator, first, device)
    if made.positions < made.least:
        message = (
            f"gives {name} {len(first)} rows of {made.positions} tokens, and method.r needs {made.least}; raise it, or "
            "lower method.r"
        )
        raise ConfigError([prepared.config.problem("method.init_rows", message)])
    return made


def initialise(prepared: Prepared, adapted: Adapted) -> dict[str, Any]:
    """Lets training rows decide how the adapter begins; returns what run.json says of it, nothing for most methods."""
    initialisation = initialisation_of(prepared, adapted)
    if initialisation is None:
        return {}
    with faults_of(prepared.config.model.name):
        initialisation.apply()
    return {"initialisation": initialisation.described()}


def reference_of(prepared: Prepared, adapted: Adapted) -> Reference | None:
    """What the untouched base says of all answers that the run will read; None where its loss does not ask."""
    task, train = prepared.task, prepared.config.train
    if not getattr(task, "needs_reference", False):
        return None
    rows = prepared.train.features
    visits = (train.max_steps or 0) * train.rows_per_step * prepared.config.data.online_selection.offered * processes()
    all_of_them = visits >= len(rows) or prepared.config.data.mixture.by is not None
    read = rows if all_of_them else [rows[place] for place in islice(prepared.order(), visits)]
    size, device = train.per_device_eval_batch_size, device_of(prepared.config.model)
    asked: Any = chain(read, prepared.dev.features, prepared.guide.features)
    with faults_of(prepared.config.model.name):
        return Reference.of(task, adapted.model, prepared.collator, asked, size, device)


def referring(prepared: Prepared, reference: Reference | None) -> Prepared:
    """With batches that hold what the base says."""
    return prepared if reference is None else replace(prepared, collator=reference.beside(prepared.collator))


def phasing_of(prepared: Prepared, adapted: Adapted) -> Phasing | None:
    """What trains when; None where everything always does. ConfigError for phases that mean nothing in this model."""
    config = prepared.config
    schedule = STRATEGIES[config.phases.strategy].build(config.phases, config.train.max_steps)
    if schedule is None:
        return None
    try:
        return Phasing(adapted.model, adapted.facts, schedule, adapted.layers, config.train.seed)
    except PlanError as error:
        raise ConfigError([config.problem("phases.plan", f"cannot be followed: {error}")]) from error
