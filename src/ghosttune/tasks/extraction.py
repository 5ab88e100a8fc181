"""Extractive question answering: the span of a text that answers a question (Devlin et al. 2018, arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ghosttune.config.facts import ModelKind
from ghosttune.config.sections.data import DataSettings
from ghosttune.config.setting import Count, TaskSettings, setting, task_name
from ghosttune.data.records import Record
from ghosttune.metrics.scoring import Item
from ghosttune.registry import TASKS
from ghosttune.tasks.labels import padding_entry
from ghosttune.tasks.protocol import PredictingTask, Prediction, model_inputs, precise, read_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.data.spans import SpanEncoder


class ExtractionSettings(TaskSettings):
    type: Literal["question_answering"] = task_name("question_answering")
    """The task (`ghosttune show tasks`)."""
    read_whole: ClassVar[str] = "makes several rows of one, and leaves rows out"
    stride: Annotated[int, Field(ge=0)] = setting(
        128,
        unit="tokens",
        why="a long text is read in windows, and an answer can lie across a border",
        benefit="an answer at the end of one window is whole in the next",
        cost="more windows to train and to ask",
    )
    """By how much the windows of a text longer than `data.max_length` overlap."""
    max_answer_length: Count = setting(
        30,
        unit="tokens",
        why="a start and an end that are each likely can lie far apart",
        benefit="no answer runs over half a page",
        cost="longer answers than this cannot be given",
    )
    """Longest span that is predicted; answers to learn from may be longer."""


@TASKS.register("question_answering", ExtractionSettings)
class ExtractionTask(PredictingTask):
    """Find the words of a text that answer a question."""

    formats = ("question_answering",)

    def __init__(self, settings: ExtractionSettings):
        self.settings = settings

    def kind(self, tokenizer: Any) -> ModelKind:
        return ModelKind("AutoModelForQuestionAnswering", "QUESTION_ANS", padding_entry(tokenizer))

    def encoder(self, tokenizer: Any, data: DataSettings) -> SpanEncoder:
        from ghosttune.data.spans import SpanEncoder

        return SpanEncoder(tokenizer, data.max_length, self.settings.stride)

    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood of each window's span: nats of its first token plus nats of its last, [B]."""
        from torch.nn.functional import cross_entropy

        logits = _logits(model, batch)
        return cross_entropy(logits, batch["spans"], reduction="none").sum(1)

    def predict(self, model: nn.Module, encoder: SpanEncoder, records: Sequence[Record]) -> list[Prediction]:
        """The best span over the windows of each row, measured against the window's own `no answer here`."""
        asked = [Record(r.example_id, (), r.group, columns={**r.columns, "answers": None}) for r in records]
        features: Any = encoder.encode(asked).features

        def read(batch: dict[str, Tensor]) -> list[tuple[float, int, int]]:
            return best_spans(_logits(model, batch), batch["in_text"].bool(), self.settings.max_answer_length)

        best: dict[str, tuple[float, str]] = {}
        texts = {record.example_id: record.columns["context"] for record in records}
        for window, (score, first, last) in zip(features, read_rows(model, encoder, features, read), strict=True):
            name = window.example_id
            best[name] = max(best.get(name, (-float("inf"), "")), (score, window.written((first, last), texts[name])))
        return [Prediction(best[record.example_id][1], {"score": best[record.example_id][0]}) for record in records]

    def metrics(self) -> list[str]:
        return ["squad_em", "squad_f1"]

    def item(self, prediction: Prediction, record: Record) -> Item:
        return Item(prediction.output, tuple(text.strip() for text in record.columns["answers"]["text"]))


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[B, T, 2] scores of being the first and the last token; padding and learned prompts cannot be either."""
    import torch

    output = model(**model_inputs(model, batch))
    logits = precise(torch.stack([output.start_logits, output.end_logits], -1))[:, -batch["input_ids"].shape[1] :]
    return logits.masked_fill(batch["attention_mask"][:, :, None] == 0, torch.finfo(logits.dtype).min)


def best_spans(logits: Tensor, in_text: Tensor, longest: int) -> list[tuple[float, int, int]]:
    """(score above that of UNANSWERED, first token, last token) of the best span inside the text, of each row."""
    import torch

    width = logits.shape[1]
    place = torch.arange(width, device=logits.device)
    length = place[None, :] - place[:, None] + 1
    allowed = (length >= 1) & (length <= longest) & in_text[:, :, None] & in_text[:, None, :]
    scores = logits[:, :, None, 0] + logits[:, None, :, 1] - logits[:, 0].sum(-1)[:, None, None]
    score, flat = scores.masked_fill(~allowed, -torch.inf).flatten(1).max(1)
    return [(s, p // width, p % width) for s, p in zip(score.tolist(), flat.tolist(), strict=True)]
