"""A run in the form of another program: GGUF, Ollama, vLLM, mlx-lm, or a folder for the hub."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.data.templates import Template
from ghosttune.errors import InputError, ModelError, RunError, listed, nearest
from ghosttune.exporting import asking, converting, folders, gguf_files, hub
from ghosttune.inference.pipeline import Pipeline, adapter_folder
from ghosttune.models.adapter_files import CONFIGURATION, WEIGHTS
from ghosttune.models.builtin import BUILTIN_MODELS
from ghosttune.models.loading import processor_files, sees
from ghosttune.models.merging import merged, probe_logits, require_equal, write_plain
from ghosttune.registry import DATASETS
from ghosttune.reports.card import UNKNOWN, model_card
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.directory import RunDir, write_folder

Result = dict[str, Any]


@dataclass
class Export:
    """What is exported, and how."""

    run: str | Path
    folder: Path
    """Where the files will lie."""
    kind: str
    adapter: bool
    converter: Path | None
    trust_remote_code: bool
    pipeline: Pipeline

    @property
    def template(self) -> Template:
        return self.pipeline.encoder.template

    @property
    def name(self) -> str:
        """What the model is called by other programs."""
        return Path(self.run).resolve().name if Path(self.run).exists() else str(self.run).replace(":", "-")

    @cached_property
    def config(self) -> RunConfig:
        """The run's; RunError for a model that no run made."""
        if not RunDir(self.run).exists:
            raise RunError(f"{self.run} is no run directory, and this target is made from a run's adapter or record")
        return load_config(RunDir(self.run).config, trust_remote_code=self.trust_remote_code)

    @cached_property
    def chat_template(self) -> str:
        """Jinja, proved to write the prompts of the run."""
        source = asking.chat_template_of(self.template)
        asking.require_equal_prompts(self.template, source)
        return source

    def adapted(self) -> Any:
        """The model with a PEFT adapter; ModelError where there is none."""
        if not hasattr(self.pipeline.model, "peft_config"):
            raise ModelError(f"{self.run} has no adapter: it is a whole model")
        return self.pipeline.model

    def tuned(self) -> Any:
        """The whole model, its logits those of the adapter within what the precision explains."""
        if not self.pipeline.has_adapter:
            return self.pipeline.model
        before = probe_logits(self.pipeline.model)
        model = merged(self.pipeline.model)
        require_equal(before, probe_logits(model), str(model.dtype).removeprefix("torch."))
        return model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer with the template of the run, for programs that render with Jinja."""
        tokenizer = self.template.tokenizer
        tokenizer.chat_template = self.chat_template
        return tokenizer

    def write_model(self, model: Any, folder: Path) -> None:
        """A plain model folder."""
        write_plain(model, self.tokenizer, folder, processor_files(self.config.model) if sees(model) else ())

    def copy_adapter(self, folder: Path) -> None:
        """PEFT's two files, as the run wrote them."""
        folder.mkdir(exist_ok=True)
        for name in (CONFIGURATION, WEIGHTS):
            shutil.copyfile(adapter_folder(RunDir(self.run)) / name, folder / name)

    def base(self, partial: Path) -> str:
        """What other programs open as the base; the built-in one is written beside the adapter."""
        settings = self.config.model
        if settings.name not in BUILTIN_MODELS:
            return settings.name
        self.write_model(self.adapted().unload(), partial / "base")
        return str(self.folder / "base")


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    kind: str = "f16",
    adapter: bool = False,
    llama_cpp: Path | None = None,
    push: str | None = None,
    trust_remote_code: bool = False,
) -> Result:
    """Writes the new folder `out` for another program; returns its files, notes, and the command that uses them.

    Args:
        to: one of TARGETS.
        kind: how GGUF stores weights (gguf, ollama).
        adapter: the LoRA adapter as a file of its own (gguf, ollama) in place of the merged model.
        llama_cpp: a folder of llama.cpp, whose converter writes the model (gguf, ollama).
        push: the repository on the hub to write to (hub); nothing is sent without it.

    InputError for options that the target does not have; ModelError for what it would not run as the run does.
    """
    _require_options(to, kind, adapter, llama_cpp, push)
    converter = None if llama_cpp is None else converting.converter_in(llama_cpp, kind)
    if to in FILES and converter is None:
        gguf_files.require_gguf()
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty; give an empty or new folder with --out")
    pipeline = Pipeline.open(run, device="cpu", trust_remote_code=trust_remote_code)
    asked = Export(run, folder, kind, adapter, converter, trust_remote_code, pipeline)
    result: Result = {}
    write_folder(folder, lambda partial: result.update(TARGETS[to](asked, partial)))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    pushed = {} if push is None else {"pushed": hub.push(folder, push)}
    return {"to": to, "folder": str(folder), "files": files, "notes": [], **result, **pushed}


FILES = ("gguf", "ollama")
"""Targets that hold a GGUF file."""


def _require_options(to: str, kind: str, adapter: bool, llama_cpp: Path | None, push: str | None) -> None:
    if to not in TARGETS:
        raise InputError(f"--to {to} is not known{nearest(to, TARGETS)}; it is one of {listed(TARGETS)}")
    if kind not in gguf_files.KINDS:
        raise InputError(f"--kind {kind} is not known; it is one of {listed(gguf_files.KINDS)}")
    given = {"--kind": kind != "f16", "--adapter": adapter, "--llama-cpp": llama_cpp is not None}
    idle = [] if to in FILES else [name for name, is_given in given.items() if is_given]
    if push is not None and to != "hub":
        idle.append("--push")
    if idle:
        raise InputError(f"{listed(idle)} would do nothing with --to {to}; leave it out")
    if adapter and llama_cpp is not None:
        raise InputError("--llama-cpp converts whole models, and --adapter asks for the adapter; give one of them")


def _gguf(asked: Export, partial: Path) -> Result:
    if asked.adapter:
        done = gguf_files.write_adapter(asked.adapted(), partial / "adapter.gguf", asked.name)
        return _described(done) | _command("llama-cli", "-m", "BASE.gguf", "--lora", asked.folder / "adapter.gguf")
    return _whole(asked, asked.tuned(), partial) | _command("llama-cli", "-m", asked.folder / "model.gguf", "--jinja")


def _ollama(asked: Export, partial: Path) -> Result:
    joints = asking.joints_of(asked.template)
    if asked.adapter:
        adapted = asked.adapted()
        gguf_files.write_adapter(adapted, partial / "adapter.gguf", asked.name)
        done = _whole(asked, adapted.unload(), partial)
    else:
        done = _whole(asked, asked.tuned(), partial)
    text = asking.modelfile(joints, asked.template, with_adapter=asked.adapter)
    (partial / "Modelfile").write_text(text, encoding="utf-8")
    called = re.sub("[^a-z0-9._-]+", "-", asked.name.lower()).strip("-.") or "tuned"
    command = _command("ollama", "create", called, "-f", asked.folder / "Modelfile")
    return done | {"notes": [*done["notes"], *joints.notes]} | command


def _whole(asked: Export, model: Any, partial: Path) -> Result:
    """model.gguf, by the `gguf` package or by llama.cpp's converter."""
    path, tokenizer = partial / "model.gguf", asked.template.tokenizer
    stop = tokenizer.convert_tokens_to_ids(asked.template.stop_token)
    how = gguf_files.Asking(asked.chat_template, asking.begins_with_bos(asked.template), stop)
    if asked.converter is None:
        return _described(gguf_files.write_model(model, tokenizer, how, path, asked.kind, asked.name))
    plain = partial / "plain"
    asked.write_model(model, plain)
    converting.convert(asked.converter, plain, path, asked.kind)
    shutil.rmtree(plain)
    return {"notes": ["llama.cpp's converter wrote it: compare its answers with those of `ghosttune chat`"]}


def _described(done: gguf_files.Written) -> Result:
    notes = list(done.notes)
    if done.whole:
        notes.append(f"{len(done.whole)} of {done.tensors} tensors are f16: their rows do not divide into blocks of 32")
    return {"tensors": done.tensors, "parameters": done.parameters, "notes": notes}


def _vllm(asked: Export, partial: Path) -> Result:
    try:
        rank = folders.vllm_rank(folders.adaptable(asked.adapted()))
    except ModelError as error:
        command = _command("vllm", "serve", asked.folder, "--served-model-name", asked.name)
        return _merged(asked, partial, error) | command
    asked.copy_adapter(partial / "adapter")
    (partial / "chat_template.jinja").write_text(asked.chat_template, encoding="utf-8")
    base, revision = asked.base(partial), asked.config.model.revision
    return _command(
        *("vllm", "serve", base, *(["--revision", revision] if revision else [])),
        *("--enable-lora", "--max-lora-rank", rank, "--lora-modules", f"{asked.name}={asked.folder / 'adapter'}"),
        *("--chat-template", asked.folder / "chat_template.jinja"),
    )


def _mlx(asked: Export, partial: Path) -> Result:
    adapter = partial / "adapter"
    adapter.mkdir()
    config = asked.pipeline.model.config
    try:
        folders.write_mlx_adapter(asked.adapted(), adapter)
        done = _command("mlx_lm.chat", "--model", asked.base(partial), "--adapter-path", asked.folder / "adapter")
    except ModelError as error:
        adapter.rmdir()
        done = _merged(asked, partial, error) | _command("mlx_lm.chat", "--model", asked.folder)
    notes = done.get("notes", [])
    if config.model_type == "gemma2":
        notes.append(f"mlx-lm gives Gemma 2 no window: beyond {config.sliding_window} tokens it answers otherwise")
    return done | {"notes": notes}


def _merged(asked: Export, partial: Path, reason: ModelError) -> Result:
    """The whole model, and why it is not the adapter."""
    model = asked.tuned()
    if model.config.is_encoder_decoder:
        raise ModelError(f"a {model.config.model_type} has an encoder, which neither vLLM nor mlx-lm runs; use the run")
    asked.write_model(model, partial)
    return {"notes": [f"the merged model: {reason}"]}


def _command(*words: object) -> Result:
    """What uses the files, to be pasted into a shell."""
    return {"command": shlex.join(map(str, words))}


def _hub(asked: Export, partial: Path) -> Result:
    settings, numbers = asked.config.model, RunNumbers(RunDir(asked.run))
    is_public = settings.name.count("/") == 1 and not Path(settings.name).exists()
    base = settings.name if is_public else settings.name.rpartition("/")[2]
    library = "peft" if hasattr(asked.pipeline.model, "peft_config") else "transformers"
    if library == "peft":
        asked.copy_adapter(partial)
        folders.name_base(partial / CONFIGURATION, base)
    else:
        asked.pipeline.model.save_pretrained(partial)
    asked.tokenizer.save_pretrained(partial)
    licence = hub.stated_licence(settings.name, settings.revision)
    data_licence = _licence_of_data(asked.config)
    text = model_card(numbers, asked.config, library, base, licence, data_licence)
    (partial / "README.md").write_text(text, encoding="utf-8")
    unknown = [of for of, found in (("base", licence), ("data", data_licence)) if found in (None, UNKNOWN)]
    notes = [f"the licence of the {of} is not known: state it in README.md before you publish" for of in unknown]
    if not is_public:
        notes.append(f"the base {base} is not on the hub: whoever loads the adapter needs it")
    words = ("ghosttune", "export", asked.run, "--to", "hub", "--out", "NEW", "--push", f"OWNER/{asked.name}")
    return {"notes": notes} | _command(*words)


def _licence_of_data(config: RunConfig) -> str:
    """As the publishers of a known dataset state it."""
    name = config.data.train.name
    return DATASETS[name].build.licence if name in DATASETS.names() else UNKNOWN


TARGETS: dict[str, Callable[[Export, Path], Result]] = {
    "gguf": _gguf,
    "ollama": _ollama,
    "vllm": _vllm,
    "mlx": _mlx,
    "hub": _hub,
}
"""--to -> what fills the folder."""
