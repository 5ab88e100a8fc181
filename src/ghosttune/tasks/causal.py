"""Causal language modelling: predict each trained token from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ghosttune.config.facts import CAUSAL_LM, ModelKind
from ghosttune.config.sections.data import DataSettings
from ghosttune.config.setting import TaskSettings, task_name
from ghosttune.data.records import TURN_FORMATS, Record
from ghosttune.registry import TASKS
from ghosttune.tasks.protocol import model_inputs, unwrapped

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.data.encoding import Encoder


class CausalSettings(TaskSettings):
    type: Literal["causal_lm"] = task_name("causal_lm")
    """The task (`ghosttune show tasks`)."""
    answers: ClassVar[bool] = True


@TASKS.register("causal_lm", CausalSettings)
class CausalTask:
    """Generate text: prompts and completions, conversations, instructions, plain text."""

    formats = TURN_FORMATS
    renders = True
    parts: tuple[str, ...] = ()

    def __init__(self, settings: CausalSettings | None = None):
        pass

    def derived(self, records: Sequence[Record]) -> dict[str, Any]:
        return {}

    def kind(self, tokenizer: Any) -> ModelKind:
        return CAUSAL_LM

    def encoder(self, tokenizer: Any, data: DataSettings) -> Encoder:
        from ghosttune.data.encoding import Encoder
        from ghosttune.data.templates import Template

        return Encoder(Template(data.template, tokenizer), data.max_length, data.loss_on)

    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed negative log-likelihood of each row's trained tokens, in nats: [B], at least float32.

        Logits are computed at the positions that predict a trained token and nowhere else: with a vocabulary of 32,000
        the output layer is otherwise most of the work of a small model.
        """
        import torch
        from torch.nn.functional import cross_entropy

        from ghosttune.data.encoding import IGNORED

        labels = batch["labels"][:, 1:]
        predicts = labels != IGNORED
        head = unwrapped(model).get_output_embeddings()
        with only_positions(head, predicts):
            logits = model(**model_inputs(model, batch), use_cache=False).logits
        precise = torch.promote_types(logits.dtype, torch.float32)
        losses = cross_entropy(logits.to(precise), labels[predicts], reduction="none")
        if "row_of_position" in batch:  # several rows in a sequence
            rows = batch["row_of_position"][:, 1:][predicts]
            return losses.new_zeros(len(batch["example_index"])).index_add(0, rows, losses)
        return losses.new_zeros(labels.shape).masked_scatter(predicts, losses).sum(1)

    def head_positions(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[str | None, Tensor | None]:
        """(name of the output layer in `model`, [N] the row of each position it sees) under `example_loss`."""
        from ghosttune.data.encoding import IGNORED

        head = model.get_output_embeddings()  # type: ignore[operator]
        name = next(name for name, module in model.named_modules() if module is head)
        predicts = batch["labels"][:, 1:] != IGNORED
        if "row_of_position" in batch:
            return name, batch["row_of_position"][:, 1:][predicts]
        return name, predicts.nonzero()[:, 0]

    def sequences(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, Sequence[str]]:
        return None, ()


@contextmanager
def only_positions(head: nn.Module, predicts: Tensor) -> Iterator[None]:
    """While inside, the output layer sees only the hidden states at the `predicts` [B, T-1] positions, as [N, d].

    A hook on the layer, not a call of the inner model, so that wrappers around the model keep their part in the
    forward.
    """

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        last = inputs[0][:, -predicts.shape[1] - 1 : -1]  # behind a learned prompt, if there is one
        return (last[predicts], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
