"""Sequence to sequence: an encoder reads the prompt, a decoder writes the answer (T5, BART)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ghosttune.config.facts import ModelKind
from ghosttune.config.sections.data import DataSettings
from ghosttune.config.setting import Count, TaskSettings, setting, task_name
from ghosttune.data.records import Record
from ghosttune.metrics.scoring import Item
from ghosttune.registry import TASKS
from ghosttune.tasks.protocol import PredictingTask, Prediction, model_inputs, precise, read_rows, unwrapped

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.data.rewriting import RewriteEncoder


class RewriteSettings(TaskSettings):
    type: Literal["seq2seq_lm"] = task_name("seq2seq_lm")
    """The task (`ghosttune show tasks`)."""
    max_target_length: Count = setting(
        128,
        unit="tokens",
        why="an answer has an end, and memory a limit",
        benefit="a run cannot fail on one endless row",
        cost="rows above it have to be shortened or left out by you",
    )
    """Longest answer, its stop token included: longer ones to learn from are refused, written ones end there."""


@TASKS.register("seq2seq_lm", RewriteSettings)
class RewriteTask(PredictingTask):
    """Rewrite a prompt with an encoder and a decoder: translations, summaries."""

    formats = ("alpaca", "prompt_completion")

    def __init__(self, settings: RewriteSettings):
        self.settings = settings

    def kind(self, tokenizer: Any) -> ModelKind:
        return ModelKind("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", new_head=False)

    def encoder(self, tokenizer: Any, data: DataSettings) -> RewriteEncoder:
        from ghosttune.data.rewriting import RewriteEncoder

        return RewriteEncoder(tokenizer, data.max_length, self.settings.max_target_length)

    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed negative log-likelihood of each row's answer, in nats: [B], at least float32."""
        from torch.nn.functional import cross_entropy

        from ghosttune.data.encoding import IGNORED

        begun = _behind_start(batch["labels"], unwrapped(model).config)
        logits = model(**model_inputs(model, batch), decoder_input_ids=begun, use_cache=False).logits
        losses = cross_entropy(precise(logits).transpose(1, 2), batch["labels"], reduction="none", ignore_index=IGNORED)
        return losses.sum(1)

    def predict(self, model: Any, encoder: RewriteEncoder, records: Sequence[Record]) -> list[Prediction]:
        """The greedy answer."""
        from transformers import GenerationConfig

        from ghosttune.models.loading import longest_input

        tokenizer, config, longest = encoder.tokenizer, model.config, self.settings.max_target_length
        greedy = GenerationConfig(
            max_new_tokens=min(longest, longest_input(model) or longest),
            do_sample=False,
            decoder_start_token_id=config.decoder_start_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=config.pad_token_id,
        )

        def read(batch: dict[str, Tensor]) -> list[Prediction]:
            written = model.generate(**model_inputs(model, batch), generation_config=greedy)[:, 1:].tolist()
            return [_answer(tokenizer, row) for row in written]

        return read_rows(model, encoder, encoder.encode(records).features, read)

    def briefly(self) -> PredictingTask:
        """With answers of two tokens: the second needs what the model kept of the first."""
        return RewriteTask(self.settings.model_copy(update={"max_target_length": 2}))

    def metrics(self) -> list[str]:
        return ["exact_match", "chrf", "stopped"]

    def item(self, prediction: Prediction, record: Record) -> Item:
        return Item(prediction.output, ((record.reference or "").strip(),), stopped=prediction.details["stopped"])


def _behind_start(labels: Tensor, config: Any) -> Tensor:
    """What the decoder has before it at each position: its start token, then the answer but its last token."""
    import torch

    from ghosttune.data.encoding import IGNORED

    start = labels.new_full((len(labels), 1), config.decoder_start_token_id)
    return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, config.pad_token_id)], 1)


def _answer(tokenizer: Any, row: list[int]) -> Prediction:
    end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else None
    text = tokenizer.decode(row[:end], skip_special_tokens=True).strip()
    return Prediction(text, {"stopped": end is not None, "tokens": len(row) if end is None else end + 1})
