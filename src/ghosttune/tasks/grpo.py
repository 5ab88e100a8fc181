"""Group relative policy optimization: make those of a model's own answers likelier that a check calls right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ghosttune.config.setting import Count, Names, TaskSettings, setting, task_name
from ghosttune.errors import listed, nearest
from ghosttune.own_code import is_own_code
from ghosttune.registry import METRICS, TASKS
from ghosttune.tasks.causal import CausalTask, only_positions
from ghosttune.tasks.policy import POLICY_LOSSES, clipped, divergence
from ghosttune.tasks.protocol import model_inputs, precise, unwrapped

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.config.schema import RunConfig

Batch = Mapping[str, "Tensor"]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

VERIFIED = "share of questions"
"""Scale of metrics that call an answer right or wrong."""


class GrpoSettings(TaskSettings):
    type: Literal["grpo"] = task_name("grpo")
    """The task (`ghosttune show tasks`)."""
    answers: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    read_whole: ClassVar[str] = "asks of which row of the data an answer is"
    rewards: Names = setting(
        ["exact_match"],
        why="the model learns from its own answers, which something has to judge",
        benefit="an answer can be right in words that no row has",
        cost="what a check lets through is learned, meant or not: a loose check is found out",
    )
    """Metrics that call an answer right or wrong (1 or 0), or functions of your own, `path.py:function`, which run
    under `--allow-code` only; their sum is the reward."""
    completions: Annotated[int, Field(ge=2)] = setting(
        8,
        unit="per prompt",
        why="an answer is good or bad in comparison with others to the same prompt",
        benefit="more find a right one where right ones are rare, and measure it less noisily",
        cost="each is written, read and trained: an update's time and memory grow with it",
    )
    """Answers that are drawn to each prompt of an update."""
    max_new_tokens: Count = setting(
        128,
        unit="tokens",
        why="a drawn answer has to end somewhere",
        benefit="an answer that needs more tokens can be right",
        cost="time and memory, most of it for answers that do not stop",
    )
    """Longest drawn answer."""
    temperature: Annotated[float, Field(ge=0.01, le=10)] = setting(
        1.0,
        why="without chance all answers to a prompt are one, and nothing is learned",
        benefit="higher finds answers the model hardly thinks of",
        cost="higher draws more nonsense; probabilities in the loss are those at this temperature",
    )
    """What logits are divided by, when answers are drawn and in the loss."""
    updates: Count = setting(
        1,
        why="drawing answers often takes longer than an update",
        benefit="more updates from the same answers",
        cost="answers are ever less those of the model that learns from them; epsilon bounds what that does",
    )
    """Updates that the answers of a step train, one after the other."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.2,
        unit="of a ratio of probabilities",
        why="an answer tells little once the model that drew it is left behind",
        benefit="lower stays nearer to the model that drew the answers",
        cost="lower learns less of each answer; nothing is clipped in the first of the updates",
    )
    """How far a token's probability may move from what it was drawn with before it stops counting."""
    beta: NotNegative = setting(
        0.0,
        why="what a check cannot see may get lost",
        benefit="higher stays nearer to the base",
        cost="learns less; the base reads every answer once more",
    )
    """Weight of the divergence from the base, in the loss of each token."""
    loss: Literal["grpo", "dr_grpo"] = setting(
        "grpo",
        why="dividing by lengths and deviations favours long wrong answers and very easy or hard prompts",
        benefit="dr_grpo weighs tokens and prompts alike",
        cost="dr_grpo's gradient is smaller the shorter answers are beside max_new_tokens",
    )
    """`grpo`: rewards in standard deviations of their group, each answer a mean over its tokens; `dr_grpo`: rewards as
    they are, tokens over max_new_tokens."""

    @property
    def repeats(self) -> int:
        return self.updates

    @property
    def sequences_per_row(self) -> int:
        return self.completions

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        if config.data.loss_on == "all":
            yield "data.loss_on", "must be completion: rewards compare with the answer of a row"
        if config.evaluate.limit == 0:
            yield "evaluate.limit", "must be above 0: the answers to dev prompts choose the checkpoint"
        if config.data.online_selection.by is not None:
            yield (
                "data.online_selection.by",
                "cannot be with task.type: grpo, which draws its own answers; set it to null",
            )
        if config.data.mixture.by is not None:
            yield (
                "data.mixture.by",
                "cannot be with task.type: grpo, which says otherwise which rows train; keep one of the two",
            )
        if config.forget.run is not None:
            yield "forget.run", "is for tasks that train a row's own answer, and grpo trains answers of the model"
        if config.train.fsdp:
            message = "needs all processes to compute alike, and grpo's answers are of unequal length; set it to false"
            yield "train.fsdp", message
        if self.updates == 1 and self.epsilon != GrpoSettings.model_fields["epsilon"].default:
            yield "task.epsilon", "does nothing with task.updates: 1: answers train once, by the model that drew them"
        if self.beta and config.method.type == "full":
            yield "task.beta", "needs the base beside the model, which method full trains; set it to 0, or use lora"
        if len(set(self.rewards)) < len(self.rewards):
            yield "task.rewards", "names a reward twice; a function of your own can weigh it"
        for name in self.rewards:
            yield from _not_a_reward(name)
        if "sql_execution" in self.rewards and config.evaluate.tables is None:
            yield "evaluate.tables", "is missing: sql_execution runs queries on the rows' own tables"


def _not_a_reward(name: str) -> Iterator[tuple[str, str]]:
    if is_own_code(name):  # looked at by what runs it: a run is opened without its rewards
        return
    known = [entry.name for entry in METRICS if _calls_right(entry.settings)]
    if name not in METRICS.names():
        message = f"no reward is called {name!r}{nearest(name, known)} ({listed(known, 10)}, or path.py:function)"
        yield "task.rewards", message
    elif name not in known:
        message = f"{name} does not call an answer right or wrong; {listed(known, 10)} do, or a function of your own"
        yield "task.rewards", message


def _calls_right(metric: Any) -> bool:
    """Whether the metric says of an answer that it is right, 1, or wrong, 0."""
    return metric.scale == VERIFIED and metric.needs == "answers" and not metric.lower_is_better


@TASKS.register("grpo", GrpoSettings)
class GrpoTask(CausalTask):
    """Generate text that a check calls right, by learning from answers of its own."""

    def __init__(self, settings: GrpoSettings):
        self.settings, self.loss = settings, POLICY_LOSSES[settings.loss]
        self.parts: tuple[str, ...] = tuple(str(number) for number in range(settings.completions))

    def example_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """[B] at least float32: of drawn answers, the sum of their losses; of other rows, nats as in `causal_lm`."""
        if "advantage" not in batch:
            return super().example_loss(model, dict(batch))
        logps, written = self.token_logps(model, batch), _written(batch)
        drawn = batch["drawn"].to(logps.dtype) if "drawn" in batch else logps.detach()
        losses = clipped(logps, drawn, batch["advantage"], self.settings.epsilon)
        if self.settings.beta:
            losses = losses + self.settings.beta * divergence(logps, batch["base"].to(logps.dtype))
        of_each = (losses * written).sum(1) / self.loss.length(written.sum(1), self.settings.max_new_tokens)
        return of_each.new_zeros(len(batch["example_index"])).index_add(0, batch["owner"], of_each)

    def token_logps(self, model: nn.Module, batch: Batch) -> Tensor:
        """[S, T-1] log-probability, at the temperature, of each token of the answers; 0 elsewhere."""
        from torch.nn.functional import cross_entropy

        written = _written(batch)
        with only_positions(unwrapped(model).get_output_embeddings(), written):
            logits = precise(model(**model_inputs(model, batch), use_cache=False).logits) / self.settings.temperature
        logps = -cross_entropy(logits, batch["input_ids"][:, 1:][written], reduction="none")
        return logps.new_zeros(written.shape).masked_scatter(written, logps)

    def sequences(self, batch: Batch) -> tuple[Tensor | None, Sequence[str]]:
        if "owner" not in batch:
            return None, ()
        return batch["owner"], [self.parts[number] for number in batch["number"].tolist()]


def _written(batch: Batch) -> Tensor:
    """[S, T-1] the positions that predict a token of an answer."""
    from ghosttune.data.encoding import IGNORED

    return batch["labels"][:, 1:] != IGNORED
