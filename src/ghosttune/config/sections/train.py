"""`train`: steps, optimizer, batches, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import Count, Section, Text, setting

Optim = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_32bit",
    "lion_8bit",
    "adafactor",
    "muon",
    "schedule_free_adamw",
    "sgd",
]
ADAMW = ("adamw_torch_fused", "adamw_torch")
"""Optimizers whose states the ledger reads."""


class TrainSettings(Section):
    max_steps: Count | None = setting(
        300,
        unit="optimizer updates",
        critical=True,
        why="too few and the rows are not learned, too many and they are learned by heart",
        benefit="the best step is kept, so that a run that is too long loses time and not quality",
        cost="time grows in proportion",
    )
    """Optimizer updates; or give `num_train_epochs`."""
    num_train_epochs: Annotated[float, Field(gt=0)] | None = setting(
        None,
        unit="passes over the training rows",
        why="rows are what you have; updates follow from them and the batch",
        benefit="the length of the run follows when rows are added",
        cost="the number of updates changes with the batch, and arms of a comparison with it",
    )
    """Passes over the training rows, instead of `max_steps`."""
    per_device_train_batch_size: Count = setting(
        8,
        unit="rows",
        critical=True,
        why="every update is a mean over the rows of its batch",
        benefit="more rows make an update less noisy, and use a device better",
        cost="activation memory grows with it",
    )
    """Rows of one micro-batch on one device."""
    per_device_eval_batch_size: Count = setting(
        32,
        unit="rows",
        why="evaluating keeps no activations for a backward pass, so that more rows fit",
        benefit="evaluations take less time on a device that has room",
        cost="memory of one forward pass of so many rows",
    )
    """Rows of one evaluation batch; the numbers do not depend on it."""
    gradient_accumulation_steps: Count = setting(
        1,
        unit="micro-batches",
        why="a batch that does not fit at once can be summed up from parts",
        benefit="the update of a large batch in the memory of a small one",
        cost="a step takes that many times longer",
    )
    """Micro-batches per optimizer update; the loss is weighted by tokens, so the split does not matter."""
    group_by_length: bool = setting(
        False,
        why="rows of a step are padded to the longest of them",
        benefit="true: hardly any computing on padding, which large models and long rows feel",
        cost="true: kinds of rows that differ in length meet in steps of their own, and a rare kind is learned slowly",
    )
    """Steps of rows of like length; else of rows as they are drawn."""
    order: Literal["random", "length", "loss", "value"] = setting(
        "random",
        why="what is easy first, or what is worth most, is said to be learned better; a draw is the control",
        benefit="a curriculum that is exact, recorded, and the same in every process",
        cost="each pass has the same order and kinds of rows meet in steps of their own; `loss` reads every row once",
    )
    """Order of the training rows in each pass: drawn anew; or sorted, the smallest first, by the tokens of a row, its
    loss per target under the untouched base, or what it stands at in the ledger of an earlier run (`order_scores`)."""
    order_descending: bool = setting(
        False,
        why="both directions have their advocates",
        benefit="the hard, or the worthy, come first",
        cost="what comes last is what the run remembers best",
    )
    """The largest first."""
    order_scores: Text | None = setting(
        None,
        why="how hard or worthy a row is can be known from elsewhere",
        benefit="an order by whatever scores rows, such as `ghosttune select --by` writes",
        cost="a row without a score is an error",
    )
    """Where scores come from: a finished run (its values), or a file of rows with `example_id` and `score`."""
    packing: bool = setting(
        False,
        why="rows of unequal length leave room beside the short ones, which is computed all the same",
        benefit="the same updates from the same rows, faster: 1.5 times on dialogues that are not grouped by length",
        cost="one pass of a few rows before training, which refuses models whose rows would see each other",
    )
    """Several rows of a micro-batch in one sequence, none of which sees the others; `task.type: causal_lm`."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = setting(
        2.0e-4,
        critical=True,
        why="how far each update goes; LoRA wants about 10x full training's",
        benefit="the first setting to try when a run does not learn, and the one that changes most",
        cost="too low wastes the run, too high destroys it: try three values before anything else",
    )
    """Peak learning rate of the optimizer."""
    optim: Optim = setting(
        "adamw_torch_fused",
        why="AdamW keeps two numbers for each that trains, which full training feels in memory",
        benefit="a quarter of that in 8 bits, Muon's half, next to nothing for Adafactor and plain steps",
        cost="values and credits of rows are told of AdamW's own step in torch: with any other the ledger must be off",
    )
    """The optimizer, by Transformers' name; `muon` is torch's, with steps as large as AdamW's (Liu et al. 2025, arXiv
    2502.16982)."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = setting(
        "cosine",
        why="large steps find a good region, small ones settle in it",
        benefit="a curve that falls ends where the weights no longer jump about",
        cost="a run that is made longer later has another curve from the start",
    )
    """Shape of the learning-rate curve after warm-up, over the whole run."""
    warmup_steps: Annotated[int, Field(ge=0)] = setting(
        10,
        unit="optimizer updates",
        why="AdamW knows nothing of the gradients' sizes in its first updates",
        benefit="the first updates cannot throw the weights far away",
        cost="so many updates learn less than they could",
    )
    """Updates over which the learning rate rises to its peak; must be fewer than the run has."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.0,
        why="weights that nothing asks for can be drawn back to zero",
        benefit="may keep a long run from learning rows by heart; unknown here, no study varies it",
        cost="pulls against what is learned; the ledger books it as a term of its own",
    )
    """Decoupled weight decay on the trained matrices (biases and norms are exempt)."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.9,
        why="an update follows a mean of the last gradients, not the newest alone",
        benefit="noise of single batches averages out",
        cost="higher values answer later to a change, and credit more of an update to older rows",
    )
    """Decay of the first moment of AdamW, or of Lion."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.999,
        why="AdamW divides each number's step by the size of its last gradients",
        benefit="lower values adapt sooner, which short runs can need",
        cost="too low, and single batches decide how large steps are",
    )
    """Decay of AdamW's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = setting(
        1.0e-8,
        why="keeps the step finite where gradients are all but zero",
        benefit="larger values leave numbers in peace whose gradients are only noise",
        cost="too large, and AdamW turns into plain gradient steps",
    )
    """Added to the root of AdamW's second moment."""
    max_grad_norm: Annotated[float, Field(ge=0)] = setting(
        1.0,
        why="a rare row can have a gradient many times the usual one",
        benefit="one bad batch cannot throw the run away",
        cost="where it binds often, it is a smaller learning rate in disguise; values count the factor",
    )
    """Gradients with a larger norm are scaled down to it; 0 turns clipping off."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = setting(
        42,
        critical=True,
        why="the same seed gives the same run",
        benefit="another one shows how much of a result is chance",
        cost="a claim about a setting needs several seeds, each a run of its own",
    )
    """Seeds splits, samples, row order, adapter initialisation and dropout."""
    logging_steps: Count | None = setting(
        None,
        unit="optimizer updates",
        why="the training loss is the first sign of a run that goes wrong",
        benefit="short intervals show the curve as it was, long ones a smoother mean",
        cost="one line of `metrics.jsonl` each, and the loss is read back from the device",
    )
    """Interval of training-loss records; unset: a fiftieth of the run."""
    eval_steps: Count | None = setting(
        None,
        unit="optimizer updates",
        why="the loss of training rows says nothing of rows that were not seen",
        benefit="more evaluations find the best step more exactly, and stop a useless run sooner",
        cost="one forward pass over the dev rows each",
    )
    """Interval of dev evaluations; unset: a tenth of the run."""
    save_steps: Count | None = setting(
        None,
        unit="optimizer updates",
        why="what was trained since the last checkpoint is lost when the machine fails",
        benefit="a killed run goes on from here, to the same bytes",
        cost="writing weights, optimizer and instruments each time",
    )
    """Interval of checkpoints to resume from; unset: as `eval_steps`. A new best evaluation is saved as well."""
    save_total_limit: Count = setting(
        2,
        unit="checkpoints",
        why="old checkpoints fill the disk",
        benefit="more stages of learning to ask afterwards (`ghosttune index --checkpoint all`)",
        cost="disk: about three times the adapter each",
    )
    """Newest checkpoints kept; the best one is kept besides."""
    early_stopping_patience: Count | None = setting(
        None,
        unit="evaluations",
        why="once dev rows get worse, more updates learn the training rows by heart",
        benefit="saves the time that remains; the best step is kept with or without it",
        cost="a loss that rises before it falls again is missed",
    )
    """Stop after this many dev evaluations in a row that did not improve on the best."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = setting(
        0.0,
        unit="nats per target",
        why="an improvement smaller than the noise of the dev rows is none",
        benefit="a run that only creeps on is ended",
        cost="slow learning is taken for none where it is set too high",
    )
    """How much lower the dev loss must be to count as an improvement for early stopping."""
    activation_checkpointing: bool = setting(
        False,
        why="activations kept for the backward pass are most of the memory of long rows",
        benefit="longer rows or larger batches in the same memory",
        cost="each layer is computed once more: about a third more time",
    )
    """Recompute activations in the backward pass (non-reentrant)."""
    fsdp: bool = setting(
        False,
        why="each of several processes holds the whole base otherwise, although it is the same in all of them",
        benefit="the base's blocks take the memory of one process divided by the number of processes",
        cost="every block is sent to every process twice per step",
    )
    """Share the frozen blocks of the base out over the processes (PyTorch's FSDP2); adapters stay whole in each. With
    one process it changes nothing."""

    @property
    def rows_per_step(self) -> int:
        """Rows that one process trains in one update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps
