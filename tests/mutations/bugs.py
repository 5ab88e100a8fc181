"""The bugs of the register (requirements, part R), each as a function that puts it back.

`scripts/mutation_gate.py` plants one after another and shows that a test fails for each. `NOT_PLANTED` names the others
and why: most are of files and figures that do not exist here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """A bug that can be put back."""

    name: str
    """Its number in the register, with a letter where it is planted in more than one way."""
    what: str
    tests: str
    """The test that must fail, with -k where it is one of several cases."""
    plant: Plant


BUGS: dict[str, Bug] = {}


def bug(name: str, test: str, only: str = "") -> Callable[[Plant], Plant]:
    """Enters a function, whose docstring says what the bug is; `only` chooses among the cases of the test."""

    def enter(plant: Plant) -> Plant:
        tests = f"tests/{test}" + (f" -k '{only}'" if only else "")
        BUGS[name] = Bug(name, (plant.__doc__ or "").strip(), tests, plant)
        return plant

    return enter


def swap(patch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replaces an attribute by what `make` makes of it, in every module that has taken it over."""
    original = getattr(owner, name)
    changed = make(original)
    patch.setattr(owner, name, changed)
    for module in [module for key, module in sys.modules.items() if key.startswith(("ghosttune", "ghostgrad"))]:
        for known, value in list(vars(module).items()):
            if value is original:
                patch.setattr(module, known, changed)


def rebuilt(patch: pytest.MonkeyPatch, registry: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replaces what a registry builds under a name."""
    entry = registry[name]
    patch.setitem(registry._entries, name, replace(entry, build=make(entry.build)))


PROMPTS = "ghosttune/data/test_templates.py::test_training_prompt_is_the_prompt_at_evaluation_and_in_chat"
RULE = "ghosttune/config/test_config_conflicts.py::test_a_rule_refuses_its_case_and_lets_the_remedy_through"
NORMS = "ghosttune/test_instruments.py::test_norms_are_those_of_the_complete_gradient_before_and_after_clipping"

# --- 000: gradients of modules and phases ---


@bug("R-000-01", "ghosttune/test_phasing.py::test_norms_of_what_is_frozen_are_null_and_its_columns_stay_in_place")
def joined_by_position(patch: pytest.MonkeyPatch) -> None:
    """Norms per layer are joined by position, so that late layers appear in the columns of early ones."""
    from ghosttune.training import exports

    def make(write: Any) -> Any:
        def shifted(path: Any, columns: Any, rows: Any) -> None:
            if path.name.endswith("layer_norms.csv"):
                packed = [[row[0], *(cell for cell in row[1:] if cell is not None)] for row in rows]
                rows = [row + [None] * (len(columns) - len(row)) for row in packed]
            write(path, columns, rows)

        return shifted

    patch.setattr(exports, "write_csv", make(exports.write_csv))


@bug("R-000-02", "ghosttune/test_phase_language.py::test_a_strategy_does_what_its_name_says")
def swapped_phases(patch: pytest.MonkeyPatch) -> None:
    """both->mlp->attn trains attention in its second phase and the MLP in its third."""
    from ghosttune.registry import STRATEGIES

    def make(build: Any) -> Any:
        def swapped(settings: Any, steps: int) -> Any:
            schedule = build(settings, steps)
            first, second, third = schedule.phases
            phases = (first, replace(second, selection=third.selection), replace(third, selection=second.selection))
            return replace(schedule, phases=phases)

        return swapped

    rebuilt(patch, STRATEGIES, "both->mlp->attn", make)


@bug("R-000-03", NORMS)
def partial_gradients(patch: pytest.MonkeyPatch) -> None:
    """Under accumulation gradients are measured after the first micro-batch, before they are complete."""
    from ghosttune.training.instruments import Measurement
    from ghosttune.training.norms import Norms

    def make(after_backward: Any) -> Any:
        return lambda self, gradient: None if self.before else after_backward(self, gradient)

    swap(patch, Measurement, "micro_batch", lambda whole: lambda self, rows, is_last: whole(self, rows, lambda: True))
    swap(patch, Norms, "after_backward", make)


@bug(
    "R-000-04",
    PROMPTS,
    "small-plain",
)
def other_prompts(patch: pytest.MonkeyPatch) -> None:
    """Evaluation asks with other words than training."""
    from ghosttune.data.encoding import Encoder

    def make(prompt_ids: Any) -> Any:
        return lambda self, asked, room=0: [*self._token_ids(["Summarize: "])[0], *prompt_ids(self, asked, room)]

    swap(patch, Encoder, "prompt_ids", make)


@bug(
    "R-000-05",
    PROMPTS,
    "small-plain",
)
def stop_not_trained(patch: pytest.MonkeyPatch) -> None:
    """The stop token is never trained, so that answers do not learn to end."""
    from ghosttune.data.encoding import Encoder

    def make(encode: Any) -> Any:
        def masked(self: Any, records: Any, *rest: Any) -> Any:
            encoded = encode(self, records, *rest)
            stop = self.template.tokenizer.convert_tokens_to_ids(self.template.stop_token)
            rows = [replace(row, trained=row.trained & (row.input_ids != stop)) for row in encoded.features]
            return replace(encoded, features=rows)

        return masked

    swap(patch, Encoder, "encode", make)


@bug("R-000-06", "ghosttune/data/test_truncation.py::test_the_context_is_cut_from_the_left")
def cut_on_the_right(patch: pytest.MonkeyPatch) -> None:
    """Long prompts are cut on the right, where the question and its cue stand."""
    from ghosttune.data.encoding import Encoder

    def make(oldest: Any) -> Any:
        def newest(self: Any, part: Any, spans: Any, cuttable: Any, wanted: int, first: int) -> list[int]:
            every = oldest(self, part, spans, cuttable, len(spans), first)
            return every[len(every) - min(max(0, wanted), len(every)) :]

        return newest

    swap(patch, Encoder, "_oldest", make)


@bug("R-000-08a", "ghosttune/config/test_config_layers.py::test_the_later_layer_wins_and_each_value_knows_its_origin")
def preset_ignores_flags(patch: pytest.MonkeyPatch) -> None:
    """--preset ignores every other setting of the command line."""
    from ghosttune.config import loading

    def make(read: Any) -> Any:
        return lambda source, preset, profile, overrides: read(source, preset, profile, () if preset else overrides)

    swap(patch, loading, "read_layers", make)


@bug("R-000-08b", "ghosttune/test_training.py::test_a_used_folder_is_refused_before_any_work")
def overwrites_the_last_run(patch: pytest.MonkeyPatch) -> None:
    """A run is written over the one before."""
    from ghosttune.run.directory import RunDir

    swap(patch, RunDir, "require_unused", lambda require: lambda self: None)


@bug("R-000-09a", "ghosttune/config/test_every_setting.py", "evaluate.limit")
def evaluation_settings_not_passed(patch: pytest.MonkeyPatch) -> None:
    """The settings of the evaluation do not reach it: how many rows are answered."""
    from ghosttune.judging import evaluate

    def make(questions_of: Any) -> Any:
        return lambda records, pool, limit, seed: questions_of(records, pool, 2, seed)

    swap(patch, evaluate, "questions_of", make)


@bug("R-000-09b", "ghosttune/test_evaluate.py::test_predictions_hold_all_references_of_a_prompt")
def single_references(patch: pytest.MonkeyPatch) -> None:
    """Rows with several references are judged against one of them."""
    from ghosttune.judging import evaluate

    def make(questions_of: Any) -> Any:
        def single(*given: Any) -> Any:
            questions, left_out = questions_of(*given)
            return [replace(question, references=question.references[:1]) for question in questions], left_out

        return single

    swap(patch, evaluate, "questions_of", make)


@bug("R-000-10", "ghosttune/test_instruments.py::test_effective_norms_do_not_move_with_r_and_alpha_at_the_first_step")
def measure_moves_with_alpha(patch: pytest.MonkeyPatch) -> None:
    """Modules are compared by a measure that moves with rank and alpha: the adapter's own gradient."""
    from ghosttune.training import norms

    def make(before: Any) -> Any:
        def scaled(self: Any, gradient: Any) -> None:
            size = float(sum(norm**2 for norm in gradient.norms.values())) ** 0.5
            self.sums = {name: tensor * size for name, tensor in self.sums.items()}
            before(self, gradient)

        return scaled

    swap(patch, norms.EffectiveNorms, "after_backward", make)


@bug("R-000-11", "ghosttune/data/test_splitting.py::test_a_split_loses_nothing_and_never_cuts_a_group")
def split_by_row(patch: pytest.MonkeyPatch) -> None:
    """Held-out rows are drawn one by one, so that equal prompts stand on both sides."""
    from ghosttune.data import splitting

    def make(split_off: Any) -> Any:
        def by_row(records: Any, fraction: float, seed: int, purpose: str) -> Any:
            apart = type(records).of(replace(record, group=record.example_id) for record in records)
            drawn = {record.example_id for record in split_off(apart, fraction, seed, purpose)[1]}
            chosen = np.array([record.example_id in drawn for record in records])
            return records.where(~chosen), records.where(chosen)

        return by_row

    swap(patch, splitting, "split_off", make)


@bug("R-000-12", "mutations/test_bugs.py::test_a_failing_evaluation_fails_the_run")
def evaluation_swallowed(patch: pytest.MonkeyPatch) -> None:
    """What goes wrong in the evaluation is swallowed, and the run ends without results."""
    from ghosttune.judging import evaluate

    def make(evaluated: Any) -> Any:
        def swallowed(*given: Any) -> Any:
            try:
                return evaluated(*given)
            except Exception:
                return {}, []

        return swallowed

    swap(patch, evaluate, "_evaluated", make)


@bug("R-000-14", "ghosttune/config/test_every_setting.py", "train.weight_decay")
def idle_setting(patch: pytest.MonkeyPatch) -> None:
    """A setting that does nothing: weight_decay."""
    _changed_arguments(patch, weight_decay=0.0)


@bug("R-000-15", "ghosttune/config/test_every_setting.py", "train.activation_checkpointing")
def no_activation_checkpointing(patch: pytest.MonkeyPatch) -> None:
    """Activation checkpointing is documented and absent."""
    _changed_arguments(patch, activation_checkpointing=False)


def _changed_arguments(patch: pytest.MonkeyPatch, **changes: Any) -> None:
    from ghosttune.training import arguments, trainer

    def make(build: Any) -> Any:
        def changed(*given: Any) -> Any:
            made = build(*given)
            for name, value in changes.items():
                setattr(made, name, value)
            return made

        return changed

    assert trainer.training_arguments is arguments.training_arguments
    swap(patch, arguments, "training_arguments", make)


# --- 001: adapters, tasks, metrics ---


@bug("R-001-02", "ghosttune/config/test_every_setting.py", "task and type")
def unknown_tasks(patch: pytest.MonkeyPatch) -> None:
    """A task that can be chosen is not known to what prepares its rows."""
    from ghosttune.registry import TASKS

    def make(build: Any) -> Any:
        def refuse(*given: Any) -> Any:
            raise KeyError("text_classification")

        return refuse

    rebuilt(patch, TASKS, "sequence_classification", make)


@bug("R-001-04a", "ghosttune/test_training.py::test_early_stopping_fires_when_dev_loss_stops_falling")
def early_stopping_never_fires(patch: pytest.MonkeyPatch) -> None:
    """Early stopping reads what never comes, and never fires."""
    from ghosttune.training.watching import Watch

    def make(on_evaluate: Any) -> Any:
        def patient(self: Any, *given: Any, **named: Any) -> Any:
            self.waited = -100
            return on_evaluate(self, *given, **named)

        return patient

    swap(patch, Watch, "on_evaluate", make)


@bug("R-001-04b", "ghosttune/test_model_loading.py::test_target_groups_of_the_built_in_model")
def targets_by_model_name(patch: pytest.MonkeyPatch) -> None:
    """Target modules follow from the model's name: query and value, whatever was asked."""
    from ghosttune.models import modules

    swap(patch, modules, "matched_modules", lambda matched: lambda facts, asked: matched(facts, ["q_proj", "v_proj"]))


@bug("R-001-05", "ghosttune/data/test_encoding.py::test_labels_are_the_trained_ids_and_nothing_else")
def padding_is_trained(patch: pytest.MonkeyPatch) -> None:
    """Labels contain padding, of which most of the loss is made."""
    from ghosttune.data.encoding import Collator

    def make(collate: Any) -> Any:
        def padded(self: Any, rows: Any) -> Any:
            batch = collate(self, rows)
            batch["labels"][batch["attention_mask"] == 0] = self.pad_token_id
            return batch

        return padded

    swap(patch, Collator, "__call__", make)


@bug("R-001-06a", "ghosttune/test_training.py::test_best_and_last_are_what_the_events_say")
def best_is_largest(patch: pytest.MonkeyPatch) -> None:
    """The best checkpoint is the one with the largest number, also of a loss."""
    from ghosttune.training.watching import Watch

    def make(on_evaluate: Any) -> Any:
        def largest(self: Any, args: Any, state: Any, control: Any, metrics: Any = None, **named: Any) -> Any:
            on_evaluate(self, args, state, control, metrics, **named)
            if state.global_step and metrics["eval_loss"] >= getattr(self, "largest_loss", -1.0):
                self.largest_loss, self.largest_step = metrics["eval_loss"], state.global_step
                control.should_save = True
            self.best_step = getattr(self, "largest_step", None)

        return largest

    swap(patch, Watch, "on_evaluate", make)


@bug("R-001-06b", "ghosttune/metrics/test_label_metrics.py::test_perplexity_is_of_the_corpus")
def perplexity_of_rows(patch: pytest.MonkeyPatch) -> None:
    """Perplexity is a mean of something of single rows."""
    from ghosttune.metrics.scoring import of_mean
    from ghosttune.registry import METRICS

    mean = lambda corpus: of_mean([item.nats / max(1, item.targets) for item in corpus.items])  # noqa: E731
    rebuilt(patch, METRICS, "perplexity", lambda build: mean)


@bug("R-001-06c", "ghosttune/metrics/test_label_metrics.py::test_label_metrics_equal_scikit_learns")
def one_label_for_all(patch: pytest.MonkeyPatch) -> None:
    """The report of hard labels counts every answer as the first class."""
    from ghosttune.registry import METRICS

    def make(build: Any) -> Any:
        def first(corpus: Any) -> Any:
            return build(replace(corpus, items=[replace(item, output=corpus.labels[0]) for item in corpus.items]))

        return first

    rebuilt(patch, METRICS, "accuracy", make)


@bug("R-001-07", "ghosttune/config/test_config_layers.py::test_configurations_cannot_be_changed_and_share_nothing")
def mutable_presets(patch: pytest.MonkeyPatch) -> None:
    """Configurations can be changed by whoever holds one."""
    from ghosttune.config.setting import Section

    patch.setattr(Section, "__setattr__", object.__setattr__)


@bug("R-001-09", "ghosttune/test_training.py::test_only_the_adapter_moves")
def base_unfrozen(patch: pytest.MonkeyPatch) -> None:
    """Preparing for training makes the base trainable."""
    from ghosttune.stages import model

    def make(add_adapter: Any) -> Any:
        def unfrozen(*given: Any, **named: Any) -> Any:
            model = add_adapter(*given, **named)
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.requires_grad_(True)
            return model

        return unfrozen

    swap(patch, model, "add_adapter", make)


# --- 002 and 003: the two scripts ---


def _silenced(patch: pytest.MonkeyPatch, rule: str) -> None:
    """A rule of `check` that finds nothing."""
    from ghosttune.config import checking

    def nothing(config: Any) -> Any:
        return iter(())

    nothing.__name__ = rule
    rules = [replace(known, find=nothing) if known.find.__name__ == rule else known for known in checking.RULES]
    patch.setattr(checking, "RULES", rules)


@bug(
    "R-003-01",
    RULE,
    "warmup",
)
def endless_warmup(patch: pytest.MonkeyPatch) -> None:
    """A warm-up longer than the run is accepted, and its learning rate never arrives."""
    _silenced(patch, "_warmup_inside_the_run")


@bug("R-003-02", "ghosttune/data/test_encoding.py::test_labels_are_the_trained_ids_and_nothing_else")
def prompts_are_trained(patch: pytest.MonkeyPatch) -> None:
    """Labels are the input ids, the prompt included."""
    import numpy as np

    from ghosttune.data.encoding import Encoder

    swap(patch, Encoder, "_trains", lambda trains: lambda self, part, length: np.ones(length, bool))


@bug(
    "R-003-03",
    RULE,
    "logging",
)
def nothing_is_logged(patch: pytest.MonkeyPatch) -> None:
    """A logging interval longer than the run is accepted, and nothing is logged."""
    _silenced(patch, "_intervals_inside_the_run")


@bug("R-003-05", "ghosttune/test_evaluate.py::test_the_pipeline_is_greedy")
def generation_settings_ignored(patch: pytest.MonkeyPatch) -> None:
    """The settings of generation are ignored."""
    from ghosttune.inference import pipeline

    def make(generate: Any) -> Any:
        return lambda model, tokenizer, prompts, stops, wanted, *rest: generate(
            model, tokenizer, prompts, stops, 1, *rest
        )

    patch.setattr(pipeline, "generate", make(pipeline.generate))


@bug("R-003-06", "ghosttune/test_training.py::test_adapter_loads_with_peft_alone_and_gives_the_same_logits")
def no_tokenizer(patch: pytest.MonkeyPatch) -> None:
    """The adapter is saved without its tokenizer."""
    from ghosttune.stages import finish
    from ghosttune.training import checkpoints

    swap(
        patch,
        finish,
        "_adapter_writer",
        lambda writer: lambda prepared, model: lambda folder: checkpoints.write_adapter(model, folder),
    )


@bug("R-003-09a", "ghosttune/data/test_truncation.py::test_prompts_lose_whole_exchanges_first")
def newest_message_dropped(patch: pytest.MonkeyPatch) -> None:
    """A long conversation loses its newest message."""
    from ghosttune.data import encoding

    def make(last_exchanges: Any) -> Any:
        return lambda turns, count: turns[: len(last_exchanges(turns, count))]

    swap(patch, encoding, "_last_exchanges", make)


@bug("R-003-09b", "ghosttune/test_evaluate.py::test_the_pipeline_is_greedy")
def sampling_of_its_own(patch: pytest.MonkeyPatch) -> None:
    """Answers are drawn with settings of the code's own."""
    from ghosttune.inference import pipeline
    from ghosttune.inference.sampling import Sampling

    def make(generate: Any) -> Any:
        return lambda model, tokenizer, prompts, stops, wanted, *rest: generate(
            model, tokenizer, prompts, stops, wanted, Sampling(temperature=5.0, seed=len(prompts))
        )

    patch.setattr(pipeline, "generate", make(pipeline.generate))


# --- 004: per-example gradients ---


@bug("R-004-01", "ghostgrad/test_reference_bugs.py::test_004_01_several_guide_rows")
def summed_before_multiplied(patch: pytest.MonkeyPatch) -> None:
    """Activations and output gradients are summed over positions before they are multiplied."""
    from ghostgrad import forms

    def make(init: Any) -> Any:
        def summed(self: Any, *given: Any, **named: Any) -> None:
            init(self, *given, **named)
            if self.positions.regular:
                shape = (self.examples, self.positions.length)
                self.left, self.right = (side.unflatten(0, shape).sum(1) for side in (self.left, self.right))
                self.positions = forms.Positions(self.examples, length=1)

        return summed

    swap(patch, forms.OuterProduct, "__init__", make)


@bug("R-004-02", "ghostgrad/test_reference_bugs.py::test_004_02_tied_weights")
def overwritten_use(patch: pytest.MonkeyPatch) -> None:
    """Of a parameter that is used twice the last use is kept."""
    from ghostgrad import forms

    swap(patch, forms._Form, "merge", lambda merge: lambda self, other: other)


@bug("R-004-03", "ghosttune/test_training.py::test_accumulation_changes_nothing")
def divided_by_rows(patch: pytest.MonkeyPatch) -> None:
    """The step's loss is divided by rows, not by tokens."""
    from ghosttune.training.trainer import RunTrainer

    def make(counted: Any) -> Any:
        return lambda self, batches: sum(len(batch["example_index"]) for batch in batches[:1])

    swap(patch, RunTrainer, "_targets", make)


@bug("R-004-04", "ghostgrad/test_reference_bugs.py::test_004_04_requires_grad_is_untouched")
def unfreezes(patch: pytest.MonkeyPatch) -> None:
    """The engine changes requires_grad of every parameter."""
    from ghostgrad.engine import GradientEngine

    def make(init: Any) -> Any:
        def unfrozen(self: Any, model: Any, **options: Any) -> None:
            model.requires_grad_(True)
            init(self, model, **options)

        return unfrozen

    swap(patch, GradientEngine, "__init__", make)


@bug("R-004-05", "ghostgrad/test_reference_bugs.py::test_004_05_rms_norm")
def no_rule_for_rms_norm(patch: pytest.MonkeyPatch) -> None:
    """RMSNorm has no rule, so that Llama-type models cannot run."""
    import torch

    from ghostgrad import RULES

    patch.delitem(RULES._entries, torch.nn.RMSNorm)


@bug("R-004-06", "ghosttune/test_causal.py::test_the_loss_is_the_cross_entropy_of_each_row")
def shifted_twice(patch: pytest.MonkeyPatch) -> None:
    """Labels are shifted twice."""
    from ghosttune.tasks.causal import CausalTask

    def make(example_loss: Any) -> Any:
        def shifted(self: Any, model: Any, batch: Any) -> Any:
            return example_loss(self, model, {**batch, "labels": batch["labels"].roll(-1, 1)})

        return shifted

    swap(patch, CausalTask, "example_loss", make)


@bug("R-004-07", "ghostgrad/test_reference_bugs.py::test_004_07_attach_again_and_unknown_choices")
def unknown_choice_accepted(patch: pytest.MonkeyPatch) -> None:
    """A choice that does not exist is accepted."""
    from ghostgrad.engine import GradientEngine

    def make(init: Any) -> Any:
        def lenient(self: Any, model: Any, **options: Any) -> None:
            if options.get("unsupported") not in (None, "raise", "exact"):
                options["unsupported"] = "raise"
            init(self, model, **options)

        return lenient

    swap(patch, GradientEngine, "__init__", make)


@bug(
    "R-004-08", "ghosttune/images/test_image_rows.py::test_a_batch_holds_the_pixels_of_the_rows_that_show_some_in_order"
)
def images_of_another_draw(patch: pytest.MonkeyPatch) -> None:
    """The images of a batch are those of a second draw, and not those of its rows."""
    from ghosttune.data.images import ImageReader

    def make(inputs: Any) -> Any:
        return lambda self, rows: inputs(self, [*rows[1:], *rows[:1]])

    swap(patch, ImageReader, "inputs", make)


@bug("R-004-09", "ghosttune/test_training.py::test_bfloat16_base_keeps_a_float32_adapter")
def declared_dtype_ignored(patch: pytest.MonkeyPatch) -> None:
    """A base declared bfloat16 runs in float32."""
    from ghosttune.stages import model

    swap(patch, model, "load_model", lambda load: lambda *given, **named: load(*given, **named).float())


@bug("R-004-11a", "ghosttune/test_training.py::test_gradients_are_clipped")
def clipping_commented_out(patch: pytest.MonkeyPatch) -> None:
    """Clipping is configured and not done."""
    _changed_arguments(patch, max_grad_norm=0.0)


@bug("R-004-11b", "ghosttune/test_training.py::test_settings_reach_the_optimizer")
def rate_at_its_floor(patch: pytest.MonkeyPatch) -> None:
    """The learning rate is at its floor long before the run's end."""
    from ghosttune.training.trainer import RunTrainer

    def make(create: Any) -> Any:
        return lambda self, steps, optimizer=None: create(self, max(1, steps // 5), optimizer)

    swap(patch, RunTrainer, "create_scheduler", make)


@bug("R-004-13", "ghosttune/test_cli.py::test_bad_input")
def failures_end_normally(patch: pytest.MonkeyPatch) -> None:
    """A failure is printed, and the program ends as if nothing were wrong."""
    from ghosttune.errors import GhosttuneError, InputError

    patch.setattr(GhosttuneError, "exit_code", 0)
    patch.setattr(InputError, "exit_code", 0)


@bug("R-004-14a", "ghostgrad/test_reference_bugs.py::test_004_14_orthonormal_projections_keep_inner_products")
def unscaled_projection(patch: pytest.MonkeyPatch) -> None:
    """Orthonormal projections are not scaled, and shrink inner products."""
    from ghostgrad import sketch

    def make(draw: Any) -> Any:
        def unscaled(kind: Any, seed: int, key: str, k: int, n: int) -> Any:
            drawn = draw(kind, seed, key, k, n)
            return drawn * (k / n) ** 0.5 if kind == "orthonormal" else drawn

        return unscaled

    swap(patch, sketch, "draw", make)


@bug("R-004-14b", "ghostgrad/test_sketches.py::test_a_matrix_depends_on_the_name_and_not_on_the_order")
def drawn_by_order(patch: pytest.MonkeyPatch) -> None:
    """Projections follow from the order in which they are drawn."""
    from ghostgrad import sketch

    drawn: list[str] = []

    def make(draw: Any) -> Any:
        def by_order(kind: Any, seed: int, key: str, k: int, n: int) -> Any:
            drawn.append(key)
            return draw(kind, seed, str(len(drawn)), k, n)

        return by_order

    swap(patch, sketch, "draw", make)


@bug("R-004-16", "ghosttune/test_instruments.py::test_row_values_are_those_of_one_backward_per_row", "adamw and lora")
def values_of_plain_descent(patch: pytest.MonkeyPatch) -> None:
    """Rows are scored as if the optimizer were plain descent."""
    from ghostgrad.values import InRunValues

    def make(directions: Any) -> Any:
        def plain(self: Any, names: Any, guide: Any) -> Any:
            return [(name, guide[name] * float(self.group(name)["lr"])) for name in names]

        return plain

    swap(patch, InRunValues, "_directions", make)


@bug("R-004-18a", "ghosttune/test_instruments.py::test_every_consumed_row_is_there_once_per_time_it_was_consumed")
def batches_dropped(patch: pytest.MonkeyPatch) -> None:
    """A batch is dropped when there is much to do."""
    from ghosttune.training.ledger import Ledger

    def make(append: Any) -> Any:
        return lambda self, now, settled: append(self, now, [one for one in settled if one.step != 5])

    swap(patch, Ledger, "_append_rows", make)


@bug("R-004-18b", "ghosttune/test_instruments.py::test_row_values_are_those_of_one_backward_per_row", "adamw and lora")
def values_without_rate(patch: pytest.MonkeyPatch) -> None:
    """Values are stored without the learning rate of their step."""
    from ghostgrad.values import InRunValues

    def make(directions: Any) -> Any:
        def unrated(self: Any, names: Any, guide: Any) -> Any:
            found = directions(self, names, guide)
            return [(name, value / float(self.group(name)["lr"])) for name, value in found]

        return unrated

    swap(patch, InRunValues, "_directions", make)


# --- 100: numbers that were silently wrong in this engine ---

WRONG = "ghostgrad/test_verifying.py::test_what_would_be_silently_wrong_is_refused_by_name"


@bug("R-100-01", "ghostgrad/families/test_unusual_families.py::test_zeros_are_never_given", "probe")
def zeros_stored(patch: pytest.MonkeyPatch) -> None:
    """A probe gives zeros for a weight that is used outside its module."""
    from ghostgrad import verifying

    def make(fault_of: Any) -> Any:
        return lambda gradient, *rest: None if gradient is None else fault_of(gradient, *rest)

    swap(patch, verifying, "fault_of", make)


@bug("R-100-02a", WRONG, "positions and first")
def rows_not_compared(patch: pytest.MonkeyPatch) -> None:
    """A leading size that happens to be the number of examples is taken for it: only sums are compared."""
    from ghostgrad import verifying

    def make(fault_of: Any) -> Any:
        return lambda gradient, grad, reference, *rest: fault_of(gradient, grad, None, *rest)

    swap(patch, verifying, "fault_of", make)


@bug("R-100-02b", WRONG, "another and order")
def equal_weights(patch: pytest.MonkeyPatch) -> None:
    """Rows are compared under equal weights, which rows in another order pass."""
    from ghostgrad import verifying

    swap(patch, verifying, "row_weights", lambda weights: lambda *given: weights(*given).fill_(1))


@bug("R-100-03", "ghostgrad/test_verifying.py::test_what_is_wrong_only_in_a_later_batch_is_found_there")
def verified_once(patch: pytest.MonkeyPatch) -> None:
    """What held for the first batch is believed of a batch with as many positions as examples."""
    from ghostgrad.verifying import Verification

    swap(patch, Verification, "needed", lambda needed: lambda self, *given: not self.forms and needed(self, *given))


@bug("R-100-04", "ghostgrad/test_verifying.py::test_a_row_whose_loss_is_not_a_number_is_named")
def not_a_number_passes(patch: pytest.MonkeyPatch) -> None:
    """A row whose loss is not a number has numbers that are none."""
    from ghostgrad.observation import Observation

    swap(patch, Observation, "_look", lambda look: lambda self, io: None)


@bug("R-100-05", "ghostgrad/test_verifying.py::test_the_exact_way_is_right_for_each", "outside and trained")
def failing_rows_kept(patch: pytest.MonkeyPatch) -> None:
    """Parameters that fail their rehearsal are shown as they are."""
    from ghostgrad.verifying import Verification

    swap(patch, Verification, "take_out", lambda take_out: lambda self, faults: None)


@bug("R-100-06", "ghostgrad/test_crediting.py::test_credits_and_decay_add_up_to_the_drop")
def credited_once(patch: pytest.MonkeyPatch) -> None:
    """A row is credited in its own step only, and the momentum of its gradient is nobody's."""
    from ghostgrad import crediting

    swap(patch, crediting, "_Update", lambda made: lambda left, *others: made(left * 0, *others))


@bug("R-100-07", "ghostgrad/test_crediting.py::test_a_value_is_what_taking_the_row_out_of_the_real_step_does", "0.3")
def clip_held_fixed(patch: pytest.MonkeyPatch) -> None:
    """Values hold the clip factor fixed, which is another without the row."""
    from ghostgrad.crediting import Clip

    swap(patch, Clip, "without", lambda without: lambda self, towards, squares: towards * 0 + 1)


NOT_PLANTED = {
    "R-000-07": "a call of a method that a dictionary lacks: no such code; types are checked",
    "R-000-13": "half-precision weights without loss scaling: float16 is not among the values of the schema's type",
    "R-000-16": "a graphics backend forced at import: nothing imports one",
    "R-001-01": "a package that cannot be imported: every test would fail",
    "R-001-03": "silent defaults where a file is missing: there is no default model or file to fall back to",
    "R-001-08": "an optional library imported unconditionally: imports per command are tested by name (test_cli.py)",
    "R-003-04": "invented figures in a document: documents are not code",
    "R-003-07": "wrong statements in a document",
    "R-003-08": "a comparison of two unrelated things: there is no such metric",
    "R-003-10": "contradicting times in two documents",
    "R-003-11": "packaging metadata of two tools",
    "R-004-10": "an invalid preset of a model's shape: shapes come from the model itself",
    "R-004-12": "gradients that are not reduced over processes: planted in one process it would not reach the others",
    "R-004-15": "an algorithm chosen once per layer: no state holds a choice; lengths vary in test_004_15",
    "R-004-17": "memory that grows with the run: no quick test can tell",
}
"""Bugs of the register that no function can put back here, and why."""
