"""A model that answers, opened from a run directory, a model folder, a hub id or `builtin:tiny`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.config.loading import load_config
from ghosttune.config.sections.model import ModelSettings
from ghosttune.data.encoding import Encoder, RowEncoder
from ghosttune.data.images import ImageEncoder, ImageReader
from ghosttune.data.records import Record, Turn
from ghosttune.data.templates import Template
from ghosttune.data.turns import images_of
from ghosttune.errors import DataError, RunError
from ghosttune.inference.bases import Bases, load_base
from ghosttune.inference.calling import Calling
from ghosttune.inference.embedding import embed
from ghosttune.inference.generating import Answer, generate
from ghosttune.inference.sampling import GREEDY, Sampling
from ghosttune.inference.streaming import Reply, Tell, Wanted, Writing, written
from ghosttune.models.loading import load_adapter, load_processor, load_tokenizer, longest_input, sees
from ghosttune.models.merging import answering_of
from ghosttune.models.weights import digest
from ghosttune.registry import TASKS
from ghosttune.run.directory import RunDir
from ghosttune.tasks.protocol import PredictingTask, Prediction

if TYPE_CHECKING:
    import torch

Prompt = str | Sequence[Turn] | Sequence[int]
"""A message, the turns of a conversation, or token ids."""


class Pipeline:
    """Answers prompts with the template and limits a run was trained with; other tasks predict what they learned."""

    def __init__(
        self,
        model: Any,
        reader: RowEncoder,
        max_new_tokens: int,
        task: Any = None,
        settings: ModelSettings | None = None,
    ):
        self.model = model
        self.settings = settings
        """Where the model's processor of images is; None where `reader` has it, or none is wanted."""
        self.reader = reader
        """What makes rows into the model's inputs."""
        self.max_new_tokens = max_new_tokens
        self.task = task
        """What predicts, and so judges rows; None where it only writes."""

    engine = "transformers"
    """What writes its answers."""

    @cached_property
    def digest(self) -> str:
        """What its weights are, base and adapter."""
        return digest(self.model)

    @property
    def writes(self) -> bool:
        """Whether it answers prompts."""
        return isinstance(self.reader, Encoder)

    @property
    def encoder(self) -> Encoder:
        """What renders prompts; RunError for a model of a task that does not write behind its prompt."""
        if not isinstance(self.reader, Encoder):  # as `writes` says
            raise RunError(
                "this run's task is not to write behind a prompt; it predicts: `ghosttune infer` and "
                "Pipeline.predict take its rows, `ghosttune evaluate` judges it"
            )
        return self.reader

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return sees(self.model)

    def encoder_of(self, turns: Sequence[Turn]) -> Encoder:
        """What renders these turns, with the images they show; ModelError where the model sees none."""
        return self.seeing if images_of(turns) else self.encoder

    @cached_property
    def seeing(self) -> Encoder:
        """What renders turns that show images; ModelError where the model sees none."""
        if isinstance(self.encoder, ImageEncoder) or self.settings is None:
            return self.encoder
        reader = ImageReader(load_processor(self.settings))
        reader.require_seen_by(self.model)
        return ImageEncoder(self.encoder, reader)

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        which: str = "adapter",
        device: str = "auto",
        trust_remote_code: bool = False,
        bases: Bases | None = None,
    ) -> Pipeline:
        """The best adapter of a run (`which="last"`: the last one) on its base model; RunError when there is none.

        `device` is where it answers, whatever it was trained on; `auto` takes the GPU where there is one. Without
        `trust_remote_code` a run whose model needs code of its own is refused. Runs opened with the same `bases` have
        one base in memory; RunError where the run would change it.
        """
        run = RunDir(path).open()
        folder = adapter_folder(run, which)
        config = load_config(run.config, trust_remote_code=trust_remote_code)
        task, tokenizer = TASKS[config.task.type].build(config.task), load_tokenizer(config.model)
        model = load_adapter((bases.take if bases else load_base)(config, device, task.kind(tokenizer)), folder)
        if bases:
            bases.require_unchanged(str(path))
        encoder = task.encoder(tokenizer, config.data)
        return cls(model, encoder, config.evaluate.max_new_tokens, predicting(task), config.model)

    @classmethod
    def from_model(
        cls,
        name: str,
        max_new_tokens: int | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
        bases: Bases | None = None,
    ) -> Pipeline:
        """An untouched model (hub id, folder or `builtin:tiny`), or what `ghosttune merge` wrote.

        A merged folder answers with the template and limits of its run, as far as they are not given. Code that comes
        with the model runs under `trust_remote_code` only.
        """
        answering = answering_of(Path(name))
        model = {"name": name, "trust_remote_code": trust_remote_code}
        model |= {"dtype": answering.dtype} if answering else {}
        config = load_config({"model": model, "data": {"train": {"path": "builtin:rows"}}})
        tokenizer, base = load_tokenizer(config.model), (bases.take if bases else load_base)(config, device)
        if answering is None:
            template = Template("chat" if tokenizer.chat_template else "plain", tokenizer)
            encoder = Encoder(template, config.data.max_length, "completion")
            return cls(base, encoder, max_new_tokens or config.evaluate.max_new_tokens, settings=config.model)
        encoder = Encoder(Template(answering.template, tokenizer), answering.max_length, "completion")
        return cls(base, encoder, max_new_tokens or answering.max_new_tokens, settings=config.model)

    @classmethod
    def open(
        cls,
        run_or_model: str | Path,
        device: str = "auto",
        trust_remote_code: bool = False,
        bases: Bases | None = None,
    ) -> Pipeline:
        """Whichever of the two `run_or_model` is."""
        path = Path(run_or_model).expanduser()
        if str(run_or_model).startswith(("/", ".", "~")) and not path.exists():
            raise RunError(
                f"{run_or_model} does not exist; give a run directory, a model folder, a hub id or builtin:tiny"
            )
        is_run = RunDir(run_or_model).exists
        if not is_run and Path(run_or_model).is_dir() and not (Path(run_or_model) / "config.json").is_file():
            raise RunError(f"{run_or_model} is neither a run (no run.json) nor a model folder (no config.json)")
        how: Any = {"device": device, "trust_remote_code": trust_remote_code, "bases": bases}
        return cls.from_run(run_or_model, **how) if is_run else cls.from_model(str(run_or_model), **how)

    @property
    def has_adapter(self) -> bool:
        """Whether there is an untouched base to compare with."""
        return hasattr(self.model, "disable_adapter")

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        adapter: bool = True,
        sampling: Sampling = GREEDY,
    ) -> list[Answer]:
        """The answer to each prompt: a text, the turns of a conversation, or token ids.

        `adapter=False` asks the untouched base. Prompts too long for `data.max_length` lose their oldest context.
        """
        ids = [self.prompt_ids(prompt, max_new_tokens) for prompt in prompts]
        template, wanted = self.encoder.template, max_new_tokens or self.max_new_tokens
        with self._asked(adapter):
            return generate(self.model, template.tokenizer, ids, template.stop_token_ids, wanted, sampling)

    def reply(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        adapter: bool = True,
        sampling: Sampling = GREEDY,
        stops: Sequence[str] = (),
        tell: Tell | None = None,
        calling: Calling | None = None,
    ) -> Reply:
        """One answer, told piece by piece to `tell`, which ends it by returning True; the text of `generate`.

        `calling` reads what it calls, where the turns of the prompt have tools.
        """
        ids = self.prompt_ids(prompt, max_new_tokens)
        template, longest = self.encoder.template, max_new_tokens or self.max_new_tokens
        wanted = Wanted(template.stop_token_ids, longest, sampling, stops, calling)
        return self.written(ids, Writing(template.tokenizer, len(ids), wanted, tell), adapter)

    def written(self, ids: list[int], writing: Writing, adapter: bool = True) -> Reply:
        """The answer to a prompt (token ids) that is written so, by itself."""
        with self._asked(adapter):
            return written(self.model, ids, writing)

    def prompt_ids(self, prompt: Prompt, max_new_tokens: int | None = None) -> list[int]:
        """Token ids of a prompt, shortened where it is too long; the cue stays. Ids stay as they are.

        DataError when what must stay and the longest answer do not fit into the model's positions.
        """
        wanted, positions = max_new_tokens or self.max_new_tokens, longest_input(self.model)
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], int):
            ids: list[int] = prompt if isinstance(prompt, list) else list(prompt)  # type: ignore[assignment]
        else:
            turns = turns_of(prompt)  # type: ignore[arg-type]
            ids = self.encoder_of(turns).prompt_ids(turns, room=self.room(wanted))
        if positions is not None and len(ids) + wanted > positions:
            raise DataError(
                f"the prompt needs {len(ids)} tokens and the longest answer {wanted}, and the model has {positions} "
                "positions; shorten the prompt, or lower max_new_tokens"
            )
        return ids

    def chat(self, prompt: Prompt) -> str:
        """The answer to a message, or to the last turn of a conversation."""
        return self.generate([prompt])[0].text

    def embed(self, texts: Sequence[str], *, pooling: str = "mean", layer: int = -1) -> torch.Tensor:
        """One vector per text, [B, width] float32 on the CPU: the hidden states of a layer over the text's tokens.

        `pooling` is `mean`, `cls` (the first token) or `max`; padding counts in none of them. Texts longer than the
        model's positions raise DataError.
        """
        return embed(self.model, self.encoder.template, texts, pooling, layer)

    def room(self, wanted: int) -> int:
        """By how much a prompt must stay below `max_length` so that the answer fits into the model's positions."""
        positions = longest_input(self.model)
        return 0 if positions is None else max(0, self.encoder.max_length + wanted - positions)

    def predict(self, rows: Sequence[Mapping[str, Any]], *, adapter: bool = True) -> list[Prediction]:
        """What the model says of each row, which has the columns of its task without the answer.

        `text`, or `premise` and `hypothesis`; `tokens`; `question` and `context`; `prompt`. RunError where the task is
        to write behind a prompt.
        """
        if self.task is None:
            raise RunError("this model writes answers to prompts: use generate or chat")
        return self.predicted([record_of(str(number), row) for number, row in enumerate(rows)], adapter=adapter)

    def predicted(self, records: Sequence[Record], *, adapter: bool = True) -> list[Prediction]:
        """`predict` of records."""
        with self._asked(adapter):
            return self.task.predict(self.model, self.reader, records)

    def classify(
        self, texts: Sequence[str | tuple[str, str]], *, top_k: int | None = None, adapter: bool = True
    ) -> list[dict[str, float]]:
        """Label -> probability of each text or pair of texts, the likeliest first; `top_k` keeps so many."""
        rows = [{"text": t} if isinstance(t, str) else {"premise": t[0], "hypothesis": t[1]} for t in texts]
        found = [prediction.details.get("probabilities") for prediction in self.predict(rows, adapter=adapter)]
        if None in found:
            raise RunError("this run's task gives no labels; use predict")
        return [dict(sorted(scores.items(), key=lambda one: -one[1])[:top_k]) for scores in found if scores]

    def answer(self, asked: Sequence[tuple[str, str]], *, adapter: bool = True) -> list[str]:
        """The words of each context that answer its question; asked are (question, context), in windows if too long."""
        rows = [{"question": question, "context": context} for question, context in asked]
        return [prediction.output for prediction in self.predict(rows, adapter=adapter)]

    @contextmanager
    def _asked(self, adapter: bool) -> Iterator[None]:
        """With the adapter, or the untouched base where there is one."""
        if adapter or not self.has_adapter:
            yield
        else:
            with self.model.disable_adapter():
                yield


def predicting(task: Any) -> PredictingTask | None:
    """The task where it judges rows by what it predicts; None where it is judged by what it writes."""
    return task if isinstance(task, PredictingTask) else None


def turns_of(prompt: str | Sequence[Turn]) -> tuple[Turn, ...]:
    """A message as the one turn it is; the turns of a conversation as they are."""
    return (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)


def adapter_folder(run: RunDir, which: str = "adapter") -> Path:
    """Where the best (`which="last"`: the last) adapter lies; RunError says how to get one when there is none."""
    folder = run.last if which == "last" else run.adapter
    if not folder.is_dir():
        finished = run.read_record()["status"] == "finished"
        way_out = "restore it, or train again" if finished else f"finish the run with `{run.resume_command}`"
        raise RunError(f"{run.path} has no {folder.name}/; {way_out}")
    return folder


def record_of(name: str, row: Mapping[str, Any]) -> Record:
    """A row of a task's columns, or of a `prompt`, as a record without an answer."""
    columns = dict(row)
    turns = (Turn("user", columns.pop("prompt")),) if "prompt" in columns else ()
    return Record(name, turns, "", columns=columns)
