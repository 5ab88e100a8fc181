"""Preferences: make answers that are wanted likelier than those that are not (DPO and its family, KTO)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ghosttune.config.facts import CAUSAL_LM, ModelKind
from ghosttune.config.sections.data import DataSettings
from ghosttune.config.setting import TaskSettings, setting, task_name
from ghosttune.data.records import Record
from ghosttune.metrics.scoring import Item
from ghosttune.registry import TASKS
from ghosttune.tasks.causal import only_positions
from ghosttune.tasks.losses import PAIR_LOSSES, PairLoss, Said, kto, preferred
from ghosttune.tasks.protocol import PredictingTask, Prediction, model_inputs, precise, read_rows, unwrapped

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.config.schema import RunConfig
    from ghosttune.data.pairing import PreferenceEncoder

Batch = Mapping[str, "Tensor"]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

OPTIONS = ("label_smoothing", "simpo_gamma", "cpo_alpha", "desirable_weight", "undesirable_weight")
"""Settings that only some losses have."""


class PreferenceSettings(TaskSettings):
    type: Literal["preference"] = task_name("preference")
    """The task (`ghosttune show tasks`)."""
    loss: Literal["dpo", "ipo", "robust_dpo", "simpo", "orpo", "cpo", "kto"] = setting(
        "dpo",
        why="papers disagree on how a preference becomes a loss",
        benefit="the same pairs, values and reports serve every loss, so that they can be compared",
        cost="dpo, ipo, robust_dpo and kto read every answer once more, before the first update",
    )
    """How a preference becomes a loss; `kto` also takes single answers that are wanted or not."""
    beta: Positive | None = setting(
        None,
        why="without it the policy would leave the base for any pair it can tell apart",
        benefit="higher stays nearer to the base, lower follows the pairs further",
        cost="the learning rate that fits changes with it",
    )
    """What a nat of log-probability is worth as reward (orpo: weight of the odds); unset: 0.1, and 2 for simpo."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = setting(
        None,
        unit="share of pairs",
        why="people mislabel pairs",
        benefit="flipped pairs pull less",
        cost="right pairs pull less too",
    )
    """robust_dpo: which share of the pairs is taken to be flipped; unset: 0.1."""
    simpo_gamma: NotNegative | None = setting(
        None,
        unit="in rewards",
        why="without a base nothing says when a pair is parted far enough",
        benefit="a larger margin parts pairs further",
        cost="text degrades where it is too large",
    )
    """simpo: margin by which the chosen answer is to be worth more; unset: 0.5."""
    cpo_alpha: NotNegative | None = setting(
        None,
        why="parting a pair can make both answers unlikely",
        benefit="the chosen answer stays likely",
        cost="it is imitated, good or not",
    )
    """cpo, simpo: weight of the chosen answer's own loss, in nats per token; unset: 1 for cpo, 0 for simpo."""
    desirable_weight: NotNegative | None = setting(
        None,
        why="there may be more wanted answers than others",
        benefit="lower where wanted answers are the many, and both kinds count as much",
        cost="mistakes among wanted answers weigh as they do",
    )
    """kto: weight of wanted answers; unset: 1."""
    undesirable_weight: NotNegative | None = setting(
        None,
        why="there may be fewer wanted answers than others",
        benefit="lower where unwanted answers are the many, and both kinds count as much",
        cost="mistakes among unwanted answers weigh as they do",
    )
    """kto: weight of answers that are not wanted; unset: 1."""

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        if config.data.loss_on != "completion":
            yield "data.loss_on", "must be completion: preferences are between answers"
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in PAIR_LOSSES[self.loss].defaults:
                users = " and ".join(loss for loss, found in PAIR_LOSSES.items() if name in found.defaults)
                yield f"task.{name}", f"does nothing for task.loss: {self.loss}; it is for {users}"


@TASKS.register("preference", PreferenceSettings)
class PreferenceTask(PredictingTask):
    """Prefer the chosen of two answers to the rejected one, or wanted answers to others."""

    renders = True
    parts = ("chosen", "rejected")

    def __init__(self, settings: PreferenceSettings):
        self.loss: PairLoss = PAIR_LOSSES[settings.loss]
        unset = {name: value for name, value in self.loss.defaults.items() if getattr(settings, name) is None}
        self.settings, self.chosen_for = settings.model_copy(update=unset), unset
        self.is_kto = settings.loss == "kto"
        self.formats = ("unpaired_preference", "preference") if self.is_kto else ("preference",)

    def derived(self, records: Sequence[Record]) -> dict[str, Any]:
        """What the loss takes where nobody chose."""
        return self.chosen_for

    @property
    def needs_reference(self) -> bool:
        """Whether its loss reads log-probabilities of the base."""
        return self.loss.reference

    def kind(self, tokenizer: Any) -> ModelKind:
        return CAUSAL_LM

    def encoder(self, tokenizer: Any, data: DataSettings) -> PreferenceEncoder:
        from ghosttune.data.pairing import PreferenceEncoder
        from ghosttune.data.templates import Template

        return PreferenceEncoder(Template(data.template, tokenizer), data.max_length, self.is_kto)

    def example_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each row: [B], at least float32.

        The base's log-probabilities are the batch's own, or else computed here: one more forward pass. KTO measures how
        far the policy is from the base on the answers of other rows, in a forward pass without gradients.
        """
        reference = None
        if self.needs_reference:
            reference = batch["reference"] if "reference" in batch else self.reference(model, batch)
        divergence = self._divergence(model, batch, reference) if self.is_kto else None
        own = _own(batch)
        said = self._said(model, own, None if reference is None else reference[batch["side"] < 2])
        if divergence is None:
            return self.loss.loss(*_sides(own, said), self.settings)
        losses = kto(said, own["side"] == 0, divergence, self.settings)
        nothing = losses.new_zeros(len(batch["margin"]))
        sums, counts = (nothing.index_add(0, own["owner"], each) for each in (losses, losses.new_ones(len(losses))))
        return sums / counts

    def _said(self, model: nn.Module, batch: Batch, reference: Tensor | None) -> Said:
        """What is known of each sequence."""
        answered, predicts = _answered(batch), self._predicts(batch)
        found = token_logps(model, batch, predicts)
        whole = found.sum(1) / predicts.sum(1) if self.loss.whole else None
        return Said((found * answered).sum(1), answered.sum(1), reference, whole)

    def _predicts(self, batch: Batch) -> Tensor:
        """[S, T-1] the positions that predict something the loss reads."""
        answered = _answered(batch)
        if not self.loss.whole:
            return answered
        return answered | ((batch["side"] == 0)[:, None] & (batch["attention_mask"][:, 1:] != 0))

    def _divergence(self, model: nn.Module, batch: Batch, reference: Tensor | None) -> Tensor:
        """How much likelier than under the base the answers of other rows are, at least 0."""
        import torch

        others = batch["side"] == 2
        assert reference is not None
        with torch.no_grad():
            logps = self.logps(model, _where(batch, others))
        return (logps - reference[others].to(logps.dtype)).mean().clamp(min=0)

    def logps(self, model: nn.Module, batch: Batch) -> Tensor:
        """[S] the log-probability of each answer, its stop token included."""
        return token_logps(model, batch, _answered(batch)).sum(1)

    def reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """[S] the log-probability of each answer under the untouched base, without dropout; one forward pass."""
        from ghosttune.models.reference import as_reference

        with as_reference(unwrapped(model)):
            return self.logps(model, batch)

    def head_positions(self, model: nn.Module, batch: Batch) -> tuple[str | None, Tensor | None]:
        head = model.get_output_embeddings()  # type: ignore[operator]
        name = next(name for name, module in model.named_modules() if module is head)
        return name, self._predicts(_own(batch)).nonzero()[:, 0]

    def sequences(self, batch: Batch) -> tuple[Tensor | None, Sequence[str]]:
        own = _own(batch)
        return own["owner"], [self.parts[int(side)] for side in own["side"].tolist()]

    def predict(self, model: nn.Module, encoder: Any, records: Sequence[Record]) -> list[Prediction]:
        """Which answer of each pair has the higher reward, or whether the reward of a single one is above 0.

        With the rewards and what they are made of. Two forward passes, that of the base also for losses without it:
        `kl_to_base` is Σ p·log(p/p_base) over the vocabulary, a mean over the tokens of the row's answers.
        """

        def read(batch: dict[str, Tensor]) -> list[Prediction]:
            return self._judged(model, _own(batch), len(batch["margin"]))

        return read_rows(model, encoder, encoder.encode(records).features, read)

    def _judged(self, model: nn.Module, batch: Batch, rows: int) -> list[Prediction]:
        from ghosttune.models.reference import as_reference

        answered, tokens = _answered(batch), _answered(batch).sum(1)
        with as_reference(unwrapped(model)):
            base = head_logits(model, batch, answered).log_softmax(-1)
        policy = head_logits(model, batch, answered).log_softmax(-1)
        next_tokens = batch["input_ids"][:, 1:][answered].unsqueeze(1)
        logps, reference = (_placed(one.gather(1, next_tokens)[:, 0], answered).sum(1) for one in (policy, base))
        said = Said(logps, tokens, reference)
        apart = _placed((policy.exp() * (policy - base)).sum(-1), answered).sum(1)
        columns = {"reward": self.loss.reward(said, self.settings), "logp": logps, "tokens": tokens, "apart": apart}
        found: list[dict[str, Any]] = [{"apart": 0.0, "tokens": 0} for _ in range(rows)]
        numbers = zip(*(column.tolist() for column in columns.values()), strict=True)
        for owner, side, own in zip(batch["owner"].tolist(), batch["side"].tolist(), numbers, strict=True):
            reward, logp, count, divergence = own
            part, row = self.parts[side], found[owner]
            row |= {f"{part}_reward": reward, f"{part}_logp": logp, f"{part}_tokens": count}
            row["apart"], row["tokens"] = row["apart"] + divergence, row["tokens"] + count
        return [_prediction(row) for row in found]

    def metrics(self) -> list[str]:
        if self.is_kto:
            return ["reward_auc", "wanted_reward", "unwanted_reward", "kl_to_base"]
        return ["reward_accuracy", "reward_margin", "chosen_logp", "rejected_logp", "length_bias", "kl_to_base"]

    def item(self, prediction: Prediction, record: Record) -> Item:
        right = "rejected" if "chosen_reward" not in prediction.details else "chosen"
        return Item(prediction.output, (right,), metadata=prediction.details)


def _prediction(row: dict[str, Any]) -> Prediction:
    kl = row.pop("apart") / row.pop("tokens")
    rewards = [row[name] for name in ("chosen_reward", "rejected_reward") if name in row]
    worth = rewards[0] - rewards[1] if len(rewards) == 2 else rewards[0]
    return Prediction(preferred(worth), row | {"kl_to_base": kl})


def _own(batch: Batch) -> Batch:
    """The batch without answers of other rows."""
    own = batch["side"] < 2
    return batch if bool(own.all()) else _where(batch, own)


def _where(batch: Batch, chosen: Tensor) -> dict[str, Tensor]:
    """Some of the sequences."""
    names = ("input_ids", "attention_mask", "labels", "owner", "side")
    return {name: batch[name][chosen] for name in names}


def _sides(batch: Batch, said: Said) -> tuple[Said, Said]:
    """What is known of the chosen answers, and of the rejected ones."""

    def where(own: Tensor) -> Said:
        columns = (said.logps, said.tokens, said.reference, said.whole)
        return Said(*(None if column is None else column[own] for column in columns))  # type: ignore[arg-type]

    return where(batch["side"] == 0), where(batch["side"] == 1)


def _answered(batch: Batch) -> Tensor:
    """[S, T-1] the positions that predict a token of an answer."""
    from ghosttune.data.encoding import IGNORED

    return batch["labels"][:, 1:] != IGNORED


def head_logits(model: nn.Module, batch: Batch, predicts: Tensor) -> Tensor:
    """[N, V] logits at the `predicts` [S, T-1] positions and nowhere else, at least float32."""
    with only_positions(unwrapped(model).get_output_embeddings(), predicts):
        return precise(model(**model_inputs(model, batch), use_cache=False).logits)


def token_logps(model: nn.Module, batch: Batch, predicts: Tensor) -> Tensor:
    """[S, T-1] log-probability of the next token at the `predicts` positions, 0 elsewhere."""
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(head_logits(model, batch, predicts), batch["input_ids"][:, 1:][predicts], reduction="none")
    return _placed(-losses, predicts)


def _placed(values: Tensor, predicts: Tensor) -> Tensor:
    return values.new_zeros(predicts.shape).masked_scatter(predicts, values)
