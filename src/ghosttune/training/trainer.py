"""The training loop: transformers.Trainer with our loss, row order, evaluation and checkpoints.

A step goes: rows in the order of `RowOrder` (of which `Candidates` may choose, whose shares `Mixture` learns, and to
which `Rollouts` draws answers) -> `Collator` -> `compute_loss` (the task's loss per row) -> backward, in which
`Measurement` sees every row -> clip -> AdamW -> `Phasing`, which says what trains next -> `Watch.on_step_end`, which
decides what is recorded, evaluated and saved.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import Encoded, RowFeatures
from ghosttune.data.mixing import source_of_row
from ghosttune.errors import NotANumber
from ghosttune.run.directory import RunDir
from ghosttune.training import checkpoints
from ghosttune.training.arguments import training_arguments
from ghosttune.training.candidates import Candidates
from ghosttune.training.freed import give_back
from ghosttune.training.instruments import Measurement, MicroBatch, instrument_of
from ghosttune.training.mixture import Mixture
from ghosttune.training.optimizers import made_here
from ghosttune.training.order import MicroBatches, RowOrder
from ghosttune.training.packed import packing_of
from ghosttune.training.phasing import Phasing
from ghosttune.training.processes import gathered
from ghosttune.training.rollouts import Rollouts
from ghosttune.training.samples import Samples
from ghosttune.training.tracking import Trackers
from ghosttune.training.unlearning import Unlearning
from ghosttune.training.watching import OF_SOURCE, Watch


class _Loader(DataLoader[Any]):
    """Passes the epoch on; the Trainer moves the tensors."""

    batch_sampler: Any

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class RunTrainer(Trainer):
    """Trains the adapter of one run; `watch` records events and the best evaluation, `measurement` the gradients."""

    model: Any
    optimizer: Any
    lr_scheduler: Any
    data_collator: Any
    loss_is_scaled_for_ga = True  # divided by the targets of the whole step, so accumulation changes nothing

    def __init__(
        self,
        model: Any,
        config: RunConfig,
        run: RunDir,
        task: Any,
        train: Encoded,
        dev: Encoded,
        collator: Any,
        watch: Watch,
        measurement: Measurement,
        phasing: Phasing | None,
        order: RowOrder,
        resuming: bool,
        by_source: bool = False,
        unlearning: Unlearning | None = None,
        samples: Samples | None = None,
        trackers: Trackers | None = None,
    ):
        self.config, self.run, self.task, self.watch, self.measurement = config, run, task, watch, measurement
        self.by_source = by_source
        """Whether dev rows are of several sources, the loss of each of which is told."""
        self.phasing, self.candidates = phasing, instrument_of(measurement, Candidates)
        self.rollouts: Rollouts | None = instrument_of(measurement, Rollouts)
        self.mixture: Mixture | None = instrument_of(measurement, Mixture)
        self.train_rows, self.dev_rows, self.order = train.features, dev.features, order
        self.unlearning, self.samples, self.trackers = unlearning, samples, trackers
        self.collate_rows = packing_of(collator, model) if config.train.packing else collator
        if unlearning is not None:
            self.collate_rows = unlearning.beside(collator)
        self.counted = torch.zeros(3, dtype=torch.int64)
        """Tokens, padded positions and targets that this process has trained with."""
        rows: Any = train.features  # a list has the length and the items that the Trainer asks of a dataset
        judges: Any = dev.features
        super().__init__(
            model=model,
            args=training_arguments(config, str(run.path), resuming),
            data_collator=collator,
            train_dataset=rows,
            eval_dataset=judges,
            optimizer_cls_and_kwargs=made_here(config),
            callbacks=[
                watch,
                measurement,
                *([phasing] if phasing else []),
                *([trackers] if trackers else []),
            ],  # what ends a phase sees it first
        )
        self.remove_callback(PrinterCallback)
        watch.trainer = self

    def train(self, *args: Any, **options: Any) -> Any:
        """To the last step, with the weights that answer."""
        output = super().train(*args, **options)
        self.optimizer.eval()
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's micro-batches; the steps are the same however many processes share them."""
        args = self.args
        size = args.per_device_train_batch_size * self.config.data.online_selection.offered
        batches = MicroBatches(self.order, size, args.process_index, args.world_size)
        if self.candidates is not None or self.rollouts is not None:
            return _Loader(range(len(self.train_rows)), batch_sampler=batches, collate_fn=list)  # type: ignore[arg-type]
        return _Loader(self.train_rows, batch_sampler=batches, collate_fn=self.collate_rows)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of the next step and its targets: as they come, chosen among candidates, or drawn."""
        self.optimizer.train()  # some optimizers have other weights for answers
        if self.rollouts is not None:
            drawn = self.rollouts.batches(self.state.global_step + 1, list(islice(epoch_iterator, num_batches)))
            return drawn, self._get_num_items_in_batch(drawn, device)
        if self.mixture is not None:
            self.measurement.begin_step()  # learns by which shares the rows are drawn that are asked for next
        if self.candidates is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        self.measurement.begin_step()
        chosen = self.candidates.choose(self.state.global_step + 1, list(islice(epoch_iterator, num_batches)))
        batches = [self.collate_rows([self.train_rows[position] for position in part]) for part in chosen]
        return batches, self._get_num_items_in_batch(batches, device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As `train.optim` says; where B learns faster than A (LoRA+), with groups of their own for B."""
        optimizer = super().create_optimizer(model)
        ratio = getattr(self.config.method, "loraplus_lr_ratio", 1.0)
        if ratio != 1:
            split_groups(optimizer, _second_factors(self.model), ratio)
        return optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch, in sight of the instruments."""
        with self.measurement.micro_batch(
            lambda: self._rows_of(inputs), lambda: self.accelerator.gradient_state.sync_gradients
        ):
            return super().training_step(model, inputs, num_items_in_batch)

    def _rows_of(self, inputs: dict[str, Any]) -> MicroBatch:
        rows = [self.train_rows[position].example_id for position in inputs["example_index"].tolist()]
        return MicroBatch.of(self.task, self.model, inputs, rows)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the step's loss: its summed nats over the targets of the whole step.

        Of rows that are forgotten or held on to, what is made of their nats.
        """
        losses = self.task.example_loss(model, inputs)
        if self.unlearning is not None:
            losses = self.unlearning.loss(losses, inputs)
        if not torch.isfinite(losses).all():
            raise NotANumber(self._not_finite(losses, inputs["example_index"]))
        if self.mixture is not None:
            self.mixture.saw(inputs["example_index"], losses)
        used = inputs["row_of_position"] >= 0 if "row_of_position" in inputs else inputs["attention_mask"] > 0
        self.counted += torch.tensor([int(used.sum()), int((~used).sum()), self._targets([inputs])])
        return losses.sum() / num_items_in_batch * self.args.world_size  # averaged over processes afterwards

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Targets of the whole step in all processes; the Trainer would ask the model's class how to count labels."""
        return self.accelerator.gather(torch.tensor(self._targets(batch_samples), device=device)).sum()  # type: ignore[union-attr]

    def _targets(self, batches: Sequence[dict[str, Any]]) -> int:
        if self.rollouts is not None:
            return sum(len(batch["advantage"]) for batch in batches)
        return sum(self.train_rows[row].targets for batch in batches for row in batch["example_index"].tolist())

    def _not_finite(self, losses: torch.Tensor, index: torch.Tensor) -> str:
        rows = [self.train_rows[position].example_id for position in index[~torch.isfinite(losses)].tolist()]
        steps = self.run.checkpoint_steps()
        state = f"the last checkpoint is step {steps[-1]}" if steps else "no checkpoint was written yet"
        return (
            f"the loss is not a number at step {self.state.global_step + 1} (rows {', '.join(rows[:5])}); {state}. "
            "Lower train.learning_rate, lengthen train.warmup_steps, or look at these rows with `ghosttune preview`."
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Dev loss in nats per target over all dev rows; the value does not depend on the batch size.

        And that of the rows that are forgotten, where there are any; and what greedy answers to dev prompts earn. The
        answers to sampled dev prompts are recorded besides.
        """
        self.optimizer.eval()
        losses = gathered(self.example_losses(self.dev_rows))[0]  # one number decides in all processes
        targets = sum(row.targets for row in self.dev_rows)
        metrics = {"eval_loss": float(losses.sum()) / targets}
        if self.by_source:
            metrics |= {f"{OF_SOURCE}{name}": loss for name, loss in loss_by_source(self.dev_rows, losses).items()}
        if self.unlearning is not None:
            losses = gathered(self.example_losses(self.unlearning.forgotten))[0]
            metrics["eval_forgotten"] = float(losses.sum()) / self.unlearning.targets
        if self.rollouts is not None:
            metrics |= {f"eval_{name}": value for name, value in self.rollouts.answers.on_dev_rows().items()}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.samples is not None:
            self._record_samples(self.samples)
        return metrics

    def _record_samples(self, samples: Samples) -> None:
        """What is asked stands in the first record alone."""
        step, answers = self.state.global_step, samples.answers()
        asked = {"asked": samples.asked} if step == 0 else {}
        self.watch.record({"step": step, "event": "samples", "split": "dev", **asked, "answers": answers})
        if self.trackers is not None:
            self.trackers.answers(step, samples.asked, answers)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tells the callbacks, with what the answers since the last log are worth."""
        if self.rollouts is not None and "loss" in logs:
            logs = logs | self.rollouts.logged()
        super().log(logs, start_time)

    @torch.no_grad()
    def example_losses(self, rows: Sequence[RowFeatures]) -> torch.Tensor:
        """Summed nats of each row's targets, [N] float64, without dropout; consumes no random numbers."""
        was_training = self.model.training
        self.model.eval()
        total = torch.zeros(len(rows), dtype=torch.float64)
        for positions in self._eval_batches(rows):
            batch = self.data_collator([rows[position] for position in positions])
            batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
            total[positions] = self.task.example_loss(self.model, batch).double().cpu()
        self.model.train(was_training)
        give_back()
        return total

    def _eval_batches(self, rows: Sequence[RowFeatures]) -> Iterator[list[int]]:
        by_length = sorted(range(len(rows)), key=lambda position: len(rows[position]))
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(by_length), size):
            yield by_length[start : start + size]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: the estimate walks over all parameters at every micro-batch and is not recorded."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        step = self.state.global_step
        self.optimizer.eval()  # a checkpoint's weights answer
        self.measurement.flush()
        checkpoints.write_checkpoint(
            self.run.checkpoint(step),
            self.model,
            self.optimizer.optimizer,
            self.lr_scheduler.state_dict(),
            self.watch.counters() | self.measurement.counters() | (self.phasing.counters() if self.phasing else {}),
            self.measurement.tensors(),
            gathered(torch.get_rng_state()),
            _state_as_json(self.state),
        )
        kept = {*self.run.checkpoint_steps()[-self.config.train.save_total_limit :], self.watch.best_step}
        for old in set(self.run.checkpoint_steps()) - kept:
            shutil.rmtree(self.run.checkpoint(old))

    def take_up(self, checkpoint: Path) -> None:
        """Weights, optimizer and instruments as a checkpoint has them, for a run that has no step left to make."""
        checkpoints.restore_adapter(checkpoint, self.model)
        self.create_optimizer_and_scheduler(self.config.train.max_steps or 0)
        checkpoints.restore_optimizer(checkpoint, self.model, self.optimizer)
        self.measurement.open(self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.verify(Path(resume_from_checkpoint))
        checkpoints.restore_adapter(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            schedule = checkpoints.restore_optimizer(Path(checkpoint), self.model, self.optimizer.optimizer)
            self.lr_scheduler.load_state_dict(schedule)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_random(Path(checkpoint), self.args.process_index)


def loss_by_source(rows: Sequence[RowFeatures], nats: torch.Tensor) -> dict[str, float]:
    """Nats per target of the rows of each source of a mixture; `nats` [N] of all rows' targets."""
    sums: dict[str, float] = {}
    targets: dict[str, int] = {}
    for row, loss in zip(rows, nats.tolist(), strict=True):
        name = source_of_row(row.example_id)
        sums[name] = sums.get(name, 0.0) + loss
        targets[name] = targets.get(name, 0) + row.targets
    return {name: loss / targets[name] for name, loss in sums.items()}


def _second_factors(model: torch.nn.Module) -> set[torch.Tensor]:
    return {p for name, p in model.named_parameters() if ".lora_B." in name or ".lora_embedding_B." in name}


def split_groups(optimizer: torch.optim.Optimizer, faster: set[torch.Tensor], ratio: float) -> None:
    """Gives the `faster` parameters of each group a group of their own, with a learning rate `ratio` times as high."""
    for group in list(optimizer.param_groups):
        chosen = [p for p in group["params"] if p in faster]
        group["params"] = [p for p in group["params"] if p not in faster]
        if chosen:
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * ratio})


def _state_as_json(state: Any) -> str:
    import dataclasses
    import json

    return json.dumps(dataclasses.asdict(state), sort_keys=True)
