"""What happens besides the arithmetic of a step: events, the best evaluation, early stopping, interruption."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ghosttune.config.sections.train import TrainSettings
from ghosttune.errors import NotANumber
from ghosttune.run.directory import RunDir
from ghosttune.run.family import handling
from ghosttune.training.processes import any_of, gathered, processes, rank

if TYPE_CHECKING:
    from ghosttune.training.trainer import RunTrainer

OF_SOURCE = "eval_loss/"
"""What the metric of the dev rows of one source of a mixture begins with; its name follows."""

EARNED = ("reward", "success")
"""What answers to dev prompts earn, where they are rewarded; the reward then decides which evaluation is the best."""

Listener = Callable[[dict[str, Any]], None]
"""Called with every event and, between them, with {"event": "step", "step", "max_steps", "tokens"} (tokens of all steps
since this process began, about so many where several share the work) and {"event": "stage", "stage"}."""


def ignore(event: dict[str, Any]) -> None:
    """The listener of a run nobody watches."""


class Watch(TrainerCallback):
    """Records events into the run and steers the Trainer by them; its counters are part of every checkpoint."""

    trainer: RunTrainer

    def __init__(self, run: RunDir, settings: TrainSettings, listen: Listener):
        self.run = run
        self.settings = settings
        self.listen = listen
        self.best_loss = math.inf
        """Or, where answers are rewarded, minus the highest reward."""
        self.best_step: int | None = None
        self.waited = 0
        """Evaluations in a row that did not improve enough for early stopping."""
        self.reference_loss = math.inf
        """Loss that early stopping compares with."""
        self.base_loss: float | None = None
        """Dev loss of the untouched base."""
        self.interrupted = False
        self.complete = False
        """Whether the last step has been made: by the plan, or by early stopping."""
        self.unlogged_loss = [0.0] * processes()
        """What each process has summed up since the last log."""
        self.logged_step = 0
        self.events = 0
        """Events recorded so far."""
        self.counted_before = [0, 0, 0]
        """What `counted` was at the checkpoint that the run goes on from."""
        self.until: float | None = None
        """Loss of the rows to forget at which the run ends."""
        self.saved: Callable[[int], None] = lambda step: None
        """Is told of every checkpoint, once it is on disk."""

    def counters(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a resumed run records and decides as an uninterrupted one."""
        return {
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "best_step": self.best_step,
            "waited": self.waited,
            "reference_loss": None if math.isinf(self.reference_loss) else self.reference_loss,
            "base_loss": self.base_loss,
            "complete": self.complete,
            "unlogged_loss": gathered(float(self.trainer._tr_loss)),
            "logged_step": self.trainer._globalstep_last_logged,
            "events": self.events,
            "counted": self.counted(),
        }

    def counted(self) -> list[int]:
        """Tokens, padded positions and targets of all updates so far, in all processes."""
        parts = [part.tolist() for part in gathered(self.trainer.counted)]
        return [sum(numbers) for numbers in zip(self.counted_before, *parts, strict=True)]

    def restore(self, counters: dict[str, Any]) -> None:
        """Takes up the counters of a checkpoint."""
        self.best_loss = math.inf if counters["best_loss"] is None else counters["best_loss"]
        self.reference_loss = math.inf if counters["reference_loss"] is None else counters["reference_loss"]
        for name in ("best_step", "waited", "base_loss", "complete", "unlogged_loss", "logged_step", "events"):
            setattr(self, name, counters[name])
        self.counted_before = counters["counted"]

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While inside, Ctrl-C or SIGTERM ends training after its step, the state saved; a second Ctrl-C acts at once.

        A second SIGTERM does not: who ends a family of processes tells each of them, and so does their parent.
        """

        def note(number: int) -> None:
            if not self.interrupted:
                self.interrupted = True
                self.listen({"event": "interrupt"})
            elif number == signal.SIGINT:
                raise KeyboardInterrupt

        with handling((signal.SIGINT, signal.SIGTERM), note):
            yield

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._tr_loss += torch.tensor(self.unlogged_loss[rank()], device=self.trainer._tr_loss.device)
        self.trainer._globalstep_last_logged = self.logged_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        tokens = int(self.trainer.counted[0]) * processes()  # they share a step's rows: what others had is alike
        self.listen({"event": "step", "step": state.global_step, "max_steps": state.max_steps, "tokens": tokens})
        if state.global_step >= state.max_steps:
            self.complete = True
            control.should_log = control.should_evaluate = control.should_save = True
        self.interrupted = any_of(self.interrupted, args.device)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.record({"step": state.global_step, "event": "log", **logs})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        loss, step = (metrics or {})["eval_loss"], state.global_step
        if not math.isfinite(loss):
            raise NotANumber(
                f"the dev loss is not a number at step {step}; lower train.learning_rate"
                if step
                else "the untouched base gives a dev loss that is not a number; look at its weights and model.dtype"
            )
        event = {"step": step, "event": "eval", "split": "dev", "loss": loss}
        of_sources = {
            name.removeprefix(OF_SOURCE): value for name, value in (metrics or {}).items() if name.startswith(OF_SOURCE)
        }
        earned = {name: (metrics or {})[f"eval_{name}"] for name in EARNED if f"eval_{name}" in (metrics or {})}
        self.record(event | ({"sources": of_sources} if of_sources else {}) | earned)
        if "eval_forgotten" in (metrics or {}):
            self._on_forgetting(step, (metrics or {})["eval_forgotten"], control)
            return
        if step == 0:
            self.base_loss = loss
            return
        judged = -earned["reward"] if earned else loss
        if judged < self.best_loss:
            self.best_loss, self.best_step = judged, step
            control.should_save = True
        if judged < self.reference_loss - self.settings.early_stopping_threshold:
            self.reference_loss, self.waited = judged, 0
        else:
            self.waited += 1
        patience = self.settings.early_stopping_patience
        if patience is not None and self.waited >= patience:
            self.complete = control.should_save = control.should_training_stop = True

    def _on_forgetting(self, step: int, loss: float, control: Any) -> None:
        """The newest adapter is the one that counts: no dev loss says how much is forgotten."""
        self.record({"step": step, "event": "eval", "split": "forgotten", "loss": loss})
        if step > 0:
            self.best_step, control.should_save = step, True
            if self.until is not None and loss >= self.until:
                self.complete = control.should_training_stop = True

    def record(self, event: dict[str, Any]) -> None:
        """Adds an event to the run's record and tells the listener."""
        self.run.append_event(event)
        self.events += 1
        self.listen(event)
