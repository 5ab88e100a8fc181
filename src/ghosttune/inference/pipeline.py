"""A model that answers, opened from a run directory, a model folder, a hub id or `builtin:tiny`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import Encoder
from ghosttune.data.records import Turn
from ghosttune.data.templates import Template
from ghosttune.errors import RunError
from ghosttune.inference.generating import Answer, generate
from ghosttune.models.loading import inference_device, load_adapter, load_model, load_tokenizer, longest_input
from ghosttune.run.directory import RunDir


class Pipeline:
    """Answers prompts with the template and limits a run was trained with."""

    def __init__(self, model: Any, encoder: Encoder, max_new_tokens: int):
        self.model = model
        self.encoder = encoder
        self.max_new_tokens = max_new_tokens

    @classmethod
    def from_run(cls, path: str | Path, which: str = "adapter", device: str = "auto") -> Pipeline:
        """The best adapter of a run (`which="last"`: the last one) on its base model; RunError when there is none.

        `device` is where it answers, whatever it was trained on; `auto` takes the GPU where there is one.
        """
        run = RunDir(path).open()
        folder = run.last if which == "last" else run.adapter
        if not folder.is_dir():
            finished = run.read_record()["status"] == "finished"
            way_out = "restore it, or train again" if finished else f"finish the run with `{run.resume_command}`"
            raise RunError(f"{run.path} has no {folder.name}/; {way_out}")
        config = load_config(run.config)
        model = load_adapter(_base(config, device), folder)
        return cls(model, encoder_of(config), config.evaluate.max_new_tokens)

    @classmethod
    def from_model(cls, name: str, max_new_tokens: int = 128, device: str = "auto") -> Pipeline:
        """An untouched model: hub id, folder or `builtin:tiny`."""
        config = load_config({"model": {"name": name}, "data": {"train": {"path": "builtin:rows"}}})
        tokenizer = load_tokenizer(config.model)
        template = Template("chat" if tokenizer.chat_template else "plain", tokenizer)
        return cls(_base(config, device), Encoder(template, config.data.max_length, "completion"), max_new_tokens)

    @classmethod
    def open(cls, run_or_model: str | Path, device: str = "auto") -> Pipeline:
        """Whichever of the two `run_or_model` is."""
        is_run = RunDir(run_or_model).exists
        if not is_run and Path(run_or_model).is_dir() and not (Path(run_or_model) / "config.json").is_file():
            raise RunError(f"{run_or_model} is neither a run (no run.json) nor a model folder (no config.json)")
        return cls.from_run(run_or_model, device=device) if is_run else cls.from_model(str(run_or_model), device=device)

    def generate(
        self, prompts: Sequence[str | Sequence[Turn]], *, max_new_tokens: int | None = None, adapter: bool = True
    ) -> list[Answer]:
        """The greedy answer to each prompt: a text, or the turns of a conversation.

        `adapter=False` asks the untouched base. Prompts too long for `data.max_length` lose their oldest context.
        """
        wanted = max_new_tokens or self.max_new_tokens
        turns = [(Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]
        ids = [self.encoder.prompt_ids(row, room=self._room(wanted)) for row in turns]
        template = self.encoder.template
        untouched = (
            nullcontext() if adapter or not hasattr(self.model, "disable_adapter") else self.model.disable_adapter()
        )
        with untouched:
            return generate(self.model, template.tokenizer, ids, template.stop_token_ids, wanted)

    def _room(self, wanted: int) -> int:
        """By how much a prompt must stay below `max_length` so that the answer fits into the model's positions."""
        positions = longest_input(self.model)
        return 0 if positions is None else max(0, self.encoder.max_length + wanted - positions)

    def chat(self, prompt: str) -> str:
        """The answer to one message."""
        return self.generate([prompt])[0].text


def encoder_of(config: RunConfig) -> Encoder:
    """The encoder of a resolved configuration: training, evaluation and chat render with this one."""
    template = Template(config.data.template, load_tokenizer(config.model))
    return Encoder(template, config.data.max_length, config.data.loss_on)


def _base(config: RunConfig, device: str) -> Any:
    model: Any = load_model(config.model, config.train.seed)
    return model.to(inference_device(device)).eval()
