"""The configuration as transformers.TrainingArguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ghosttune.config.schema import RunConfig
from ghosttune.models.upstream import checkpointing_word
from ghosttune.training.optimizers import MUON
from ghosttune.training.processes import processes


def training_arguments(config: RunConfig, folder: str, resuming: bool) -> TrainingArguments:
    """Arguments of a resolved configuration; what the Trainer would do by itself beyond our records is off."""
    train = config.train
    device = config.model.device
    if device.startswith("cuda:"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    name = f"{checkpointing_word()}_checkpointing"
    checkpointing: dict[str, Any] = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    arguments = TrainingArguments(
        output_dir=folder,
        run_name=Path(folder).name,
        max_steps=train.max_steps or 0,
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch" if train.optim == MUON else train.optim,  # which the Trainer does not know, nor makes
        seed=train.seed,
        logging_steps=train.logging_steps or 1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        eval_on_start=not resuming,
        save_strategy="steps",
        save_steps=train.save_steps or 1,
        **(checkpointing if train.activation_checkpointing else {}),
        use_cpu=device == "cpu",
        ddp_find_unused_parameters=True if config.phases.strategy != "none" else None,
        ddp_backend="gloo" if device == "cpu" and processes() > 1 else None,
        remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu",
        report_to=[],
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible devices must not switch DataParallel on
    return arguments
