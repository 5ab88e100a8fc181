"""Models and tokenizers from the hub, a folder or the package: safetensors only, and exactly what was asked for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.config.facts import CAUSAL_LM, STARTED_BY_ROWS, ModelKind
from ghosttune.config.sections.model import ModelSettings
from ghosttune.config.setting import MethodSettings
from ghosttune.errors import ConfigError, GhosttuneError, ModelError, Problem, listed
from ghosttune.models.adapter_files import (
    CONFIGURATION,
    MODEL_INDEX,
    MODEL_WEIGHTS,
    WEIGHTS,
    adapter_configuration,
    require_fit,
    require_own_shards,
    require_safetensors,
    stored_shapes,
)
from ghosttune.models.attending import attention_of, refused_attention, require_attention
from ghosttune.models.builtin import BUILTIN_MODELS, builtin_model_folder
from ghosttune.models.modules import head_modules, targets_in
from ghosttune.models.prompting import LEFT_OUT, can_do_without, fit_prompt, prompt_length, try_out
from ghosttune.models.quantizing import prepared_for_training, quantized_loading
from ghosttune.models.starting import has_start, in_order, keep_base, save_joined, weights_before
from ghosttune.models.upstream import (
    faults_of,
    gives_up,
    import_peft,
    refusing_in_words,
    targets_as_named,
    unusable_tokenizer,
    without_upstream_reports,
    without_upstream_warnings,
    without_videos,
)
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ghosttune.models.direct import DirectModel


TWIN_DISTANCE = 1e-2
"""Rows closer than this share of their length are one row: learned tokens are never so close."""

ROWS_AT_ONCE = 4096
"""Rows compared together: bounds memory for vocabularies of 150,000 tokens."""

HUB_SECONDS = 15
"""How long to wait for the hub's answer."""


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, with the chat template that the settings name; ModelError when it cannot be had.

    AutoTokenizer imports torch and half of Transformers to find out which class a model's tokenizer has; of a built-in
    model that is known, so that a preview does without.
    """
    place, arguments = located(settings)
    with explained(settings, "tokenizer"):
        if settings.name in BUILTIN_MODELS:
            from transformers import TokenizersBackend

            tokenizer = TokenizersBackend.from_pretrained(place)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(place, **arguments)
        if settings.chat_template is not None:
            tokenizer.chat_template = settings.chat_template
        return refusing_in_words(tokenizer, settings.name)


def load_processor(settings: ModelSettings) -> Any:
    """What makes text and images a model's inputs; ModelError when there is none, or no Pillow to open images with."""
    from importlib.util import find_spec

    if find_spec("PIL") is None:
        raise ModelError("images are opened with Pillow, which is not installed: pip install 'ghosttune[images]'")
    from transformers import AutoProcessor

    place, arguments = located(settings)
    with explained(settings, "image processor"), without_videos() as besides:
        processor = AutoProcessor.from_pretrained(place, backend="pil", **arguments, **besides)  # whatever is installed
    if not hasattr(processor, "image_processor"):
        raise ModelError(f"the model {settings.name} does not see: rows with images need one such as LLaVA 1.5")
    return processor


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def processor_files(settings: ModelSettings) -> list[Path]:
    """The files that say what makes images the model's inputs; none for a model of text alone."""
    from transformers.utils.hub import cached_file

    place, arguments = located(settings)
    known = {name: value for name, value in arguments.items() if name in ("revision", "local_files_only")}
    missing: Any = {"_raise_exceptions_for_missing_entries": False}
    found = (cached_file(place, name, **known, **missing) for name in PROCESSOR_FILES)
    return [Path(file) for file in found if file is not None]


def load_model(settings: ModelSettings, seed: int, kind: ModelKind = CAUSAL_LM) -> PreTrainedModel:
    """The base model on the CPU in its declared dtype, every parameter frozen.

    `init: random` takes the shape only and draws the weights from `seed`, from which a task's new head is drawn too.
    ModelError when weights are pickled, damaged or incomplete, when the model sees the words it is to predict, and when
    there is no such model for the task.
    """
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype = getattr(torch, settings.dtype)
    place, arguments = located(settings)
    chosen = attention_of(settings)
    torch.manual_seed(seed)
    with explained(settings, "model"), refused_attention(settings):
        config = transformers.AutoConfig.from_pretrained(place, **arguments, **kind.entries)
        loader = loader_of(kind, config)
        build = partial(loader.from_config, config, dtype=dtype, trust_remote_code=settings.trust_remote_code, **chosen)
        if settings.init == "random":
            model = build()
        else:
            with without_upstream_reports():
                loaded: Any = loader.from_pretrained(
                    place,
                    dtype=dtype,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # refused below, by name
                    output_loading_info=True,
                    **quantized_loading(settings, build if kind.new_head else None),
                    **chosen,
                    **arguments,
                    **kind.entries,
                )
            model, found = loaded
            new = head_modules(model) if kind.new_head else []
            _require_complete(settings, model, found["missing_keys"], found["mismatched_keys"], new)
    require_attention(settings, model)
    if settings.quantization != "none":
        model = prepared_for_training(model)
    if kind is CAUSAL_LM:
        _require_causal(settings, model)
    if kind.loader == "AutoModelForSeq2SeqLM" and not model.config.is_encoder_decoder:
        raise ModelError(
            f"{settings.name} ({model.config.model_type}) has no encoder and decoder for texts, which task.type: "
            "seq2seq_lm needs; take a T5 or BART, or task.type: causal_lm where it writes behind a prompt"
        )
    if kind.new_head:
        model.config.use_cache = False  # nothing is written that could go on from it
    model.load_again = partial(load_model, settings, seed, kind)
    return model.requires_grad_(False)


def sees(model: Any) -> bool:
    """Whether it takes images beside text."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(model.config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def loader_of(kind: ModelKind, config: Any) -> Any:
    """The class that loads it; models that see as well write under another one."""
    import transformers

    sees = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    also_writes = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if kind is CAUSAL_LM and sees and not also_writes:
        return transformers.AutoModelForImageTextToText
    return getattr(transformers, kind.loader)


def _require_complete(
    settings: ModelSettings,
    model: PreTrainedModel,
    missing: Iterable[str],
    mismatched: Iterable[tuple[str, Any, Any]],
    new: Sequence[str],
) -> None:
    """Transformers draws missing weights at random and goes on; a run must not, except for the modules that are new."""
    for name, stored, expected in mismatched:
        if name.split(".")[0] in new:
            raise ModelError(
                f"{settings.name} has a head of its own for another task: {name} is {tuple(stored)}, and this task "
                f"needs {tuple(expected)}; give the labels it was trained with (task.labels), or the model without it"
            )
        raise ModelError(
            f"the weights of {settings.name} are not of the model that its config.json describes: {name} is "
            f"{tuple(stored)} and should be {tuple(expected)}"
        )
    names = sorted(name for name in missing if name.split(".")[0] not in new)
    if new and len(names) >= len(model.base_model.state_dict()):
        raise ModelError(
            f"the model that Transformers has of {settings.name} for this task, {type(model).__name__}, reads its "
            "weights under other names than they have; use another model for the task"
        )
    if names:
        raise ModelError(
            f"the weights of {settings.name} lack {len(names)} tensors of the model: {listed(names, 5)}; "
            "get the complete weights, or start from scratch with model.init: random"
        )


def _require_causal(settings: ModelSettings, model: PreTrainedModel) -> None:
    """Asks the model itself: what it says of a word must not depend on the words behind it."""
    import torch

    with torch.no_grad(), faults_of(settings.name):
        logits = model(input_ids=torch.tensor([[0, 1, 0], [0, 1, 1]]), use_cache=False).logits[:, :2].float()
    if not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ModelError(
            f"{settings.name} reads in both directions: it would see the words it is to predict. "
            "Causal language modelling needs a decoder, such as a Llama or GPT-2"
        )


def longest_input(model: PreTrainedModel) -> int | None:
    """Positions that rows can take; None where the model's configuration sets no limit. A learned prompt takes some."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return None
    tables = (module for name, module in model.named_modules() if name.endswith("embeddings.position_embeddings"))
    first = getattr(next(tables, None), "padding_idx", None)  # RoBERTa counts positions from behind its padding token
    return limit - prompt_length(model) - (0 if first is None else first + 1)


def add_adapter(model: Any, settings: MethodSettings, seed: int, kind: ModelKind = CAUSAL_LM) -> Any:
    """The model with an adapter on the modules that the method's settings mean; only it and a new head are trainable.

    A PEFT model; or a DirectModel where the method trains the model's own parameters. Raises ConfigError when a target
    matches nothing, or when PEFT cannot adapt what it matches.
    """
    import torch

    from ghosttune.models.direct import DirectModel

    import_peft()
    _require_tokens(model, getattr(settings, "trainable_token_indices", None) or [])
    heads = head_modules(model) if kind.new_head else []
    targets = targets_in(model, getattr(settings, "target_modules", None), heads)
    torch.manual_seed(seed)
    built = METHODS[settings.type].build(settings, targets)
    if isinstance(built, list):
        own = [name for name, _ in model.named_parameters() if name.split(".")[0] in heads]
        return DirectModel(model, list(dict.fromkeys([*built, *own])), model.load_again)
    if built.is_prompt_learning:
        fit_prompt(built, model, kind)
    if built.is_prompt_learning or kind.adapter_task != LEFT_OUT:
        built.task_type = kind.adapter_task
    built.modules_to_save = heads or None
    return _adapted(model, built, getattr(settings, "init_lora_weights", None) in STARTED_BY_ROWS)


def _require_tokens(model: PreTrainedModel, tokens: Sequence[int]) -> None:
    if not tokens:
        return
    table: Any = model.get_input_embeddings()
    beyond = [token for token in tokens if token >= len(table.weight)]
    if beyond:
        message = f"holds {listed(beyond)}, and the model's tokens are 0 to {len(table.weight) - 1}"
        raise ConfigError([Problem("method.trainable_token_indices", message)])


def _adapted(model: PreTrainedModel, configuration: Any, will_start: bool) -> Any:
    """`will_start`: training rows will decide an update to start with, which something has to take back."""
    import peft

    weights = weights_before(model, configuration)
    try:
        with targets_as_named(), without_upstream_warnings():
            adapted: Any = peft.get_peft_model(model, configuration)
            if weights or will_start:
                keep_base(adapted, weights)
            if configuration.is_prompt_learning:
                try_out(adapted)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise ConfigError([_misfit(configuration, error)]) from error
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path
    adapted.trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    return can_do_without(adapted)


def _misfit(configuration: Any, error: Exception) -> Problem:
    """Why PEFT cannot adapt what the settings mean, and what to do."""
    kind = configuration.peft_type.value.lower()
    if "Mamba-based models" in str(error):
        names = {name.rpartition(".")[2] for name in configuration.target_modules}
        left = sorted(names - {"out_proj", "conv1d"})
        message = (
            "means out_proj as well, whose weight a Mamba layer uses without its module, so that an adapter there "
            f"would do nothing; set it to the others: [{', '.join(left)}]"
        )
        return Problem("method.target_modules", message)
    return Problem("method.type", f"{kind} does not fit this model: {_first_line(error)}")


def save_adapter(model: Any, folder: Path) -> None:
    """The adapter in PEFT's own format; a plain model folder where the model's own parameters were trained."""
    if has_start(model):
        save_joined(model, folder)
        return
    configuration = getattr(model, "peft_config", {}).get("default")
    with _every_rank(configuration), in_order(configuration), _without_card(model):
        model.save_pretrained(str(folder), safe_serialization=True)


@contextmanager
def _without_card(model: Any) -> Iterator[None]:
    """PEFT would fill in a model card that says nothing, which takes longer than all else that it writes."""
    model.create_or_update_model_card = lambda output_dir: None
    try:
        yield
    finally:
        del model.create_or_update_model_card


@contextmanager
def _every_rank(configuration: Any) -> Iterator[None]:
    """PEFT would cut the ranks that AdaLoRA has taken away by now, which the weights of an earlier step still have."""
    pattern = configuration.rank_pattern if getattr(configuration, "peft_type", None) == "ADALORA" else None
    if pattern:
        configuration.rank_pattern = None
    try:
        yield
    finally:
        if pattern:
            configuration.rank_pattern = pattern


def untrained_twins(model: PreTrainedModel, token_ids: Iterable[int]) -> dict[int, int]:
    """Of these tokens, those the base never learned -> how many other tokens have the same row in its output layer.

    Tokens that never occurred in pretraining end up with one and the same row; the model cannot tell them apart, so
    that none of them can become likely by training anything but the rows themselves.
    """
    head: Any = model.get_output_embeddings()
    rows = head.weight.detach()
    twins = {}
    for token in token_ids:
        row = rows[token].float()
        near = TWIN_DISTANCE * row.norm()
        alike = sum(int(((some.float() - row).norm(dim=1) < near).sum()) for some in rows.split(ROWS_AT_ONCE)) - 1
        if alike > 0:
            twins[token] = alike
    return twins


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of a folder that `save_adapter` wrote.

    Where the folder holds a model, tuned as a whole, that model in its place. ModelError when its weights are pickled,
    damaged or not there, and, with their names, when tensors are missing, left over or of another shape.
    """
    try:
        with targets_as_named(), without_upstream_warnings():
            if not (folder / CONFIGURATION).exists() and (folder / "config.json").exists():
                return _tuned(model, folder)
            return _with_adapter(model, folder)
    except ModelError:
        raise
    except Exception as error:  # the files are anybody's, and PEFT's own checks raise what they please
        raise ModelError(
            f"the adapter in {folder} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _with_adapter(model: Any, folder: Path) -> Any:
    import peft

    configuration = adapter_configuration(folder)
    stored = stored_shapes(require_safetensors(folder, WEIGHTS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # what PEFT says of names and shapes is refused below
        adapted = peft.PeftModel.from_pretrained(
            model, str(folder), config=configuration, is_trainable=False, ignore_mismatched_sizes=True
        )
    expected: Any = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    require_fit(f"the adapter in {folder}", stored, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    return can_do_without(adapted)


def _tuned(model: Any, folder: Path) -> DirectModel:
    from ghosttune.models.direct import DirectModel

    file = require_safetensors(folder, MODEL_WEIGHTS, MODEL_INDEX)
    if file.name == MODEL_INDEX:
        require_own_shards(file)
    with without_upstream_reports():
        tuned, found = type(model).from_pretrained(
            str(folder), dtype=model.dtype, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    read = {name: tuple(tensor.shape) for name, tensor in tuned.state_dict().items()}
    require_fit(f"the model in {folder}", read, own)
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *(name for name, *_ in found["mismatched_keys"])]
    if wrong:
        raise ModelError(f"the weights in {folder} are not of its model: {listed(sorted(wrong), 3)}")
    return DirectModel(tuned.to(model.device).train(model.training), [], model.load_again)


def device_of(settings: ModelSettings) -> torch.device:
    """The resolved device, as torch names it."""
    import torch

    return torch.device(settings.device)


def cuda_devices(device: str) -> int:
    """How many CUDA devices torch sees; none is looked for where the CPU was asked for."""
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def has_bfloat16() -> bool:
    """Whether the CUDA devices compute in bfloat16 themselves; True where there are none."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def inference_device(name: str) -> torch.device:
    """The device a model answers on: `auto` is the GPU where there is one; ModelError when the asked one is missing."""
    import torch

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name} cannot be used: {_first_line(error)}; give auto, cpu, cuda or cuda:N"
        ) from error


def revision_of(model: PreTrainedModel) -> str | None:
    """Commit of a hub model; None for a folder."""
    return getattr(model.config, "_commit_hash", None)


def located(settings: ModelSettings) -> tuple[str, dict[str, Any]]:
    """What to hand to `from_pretrained`, and with which arguments; a cached hub id does not touch the network."""
    arguments: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.name.startswith("builtin:"):
        if settings.name not in BUILTIN_MODELS:
            raise ModelError(f"no built-in model is called {settings.name} (known: {listed(BUILTIN_MODELS)})")
        return str(builtin_model_folder(settings.name)), arguments
    path = Path(settings.name).expanduser()
    if path.exists() or settings.name.startswith(("/", "./", "../", "~")):
        _require_model_folder(path)
        return str(path), arguments
    arguments["revision"] = settings.revision or "main"
    return settings.name, {**arguments, "local_files_only": _is_cached(settings.name, arguments["revision"])}


def _require_model_folder(path: Path) -> None:
    if not path.is_dir():
        raise ModelError(f"model.name {path} is not a folder")
    if (path / "config.json").is_file():
        return
    if (path / "run.json").is_file():
        raise ModelError(f"model.name {path} is a run; give the model it was trained from, or `ghosttune chat {path}`")
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"model.name {path} holds an adapter; give the model it was trained from")
    raise ModelError(f"model.name {path} holds no model: there is no config.json in it")


def _is_cached(name: str, revision: str) -> bool:
    """Whether the hub model is on this machine; asks the hub once where it is not, and ModelError when that fails."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return True
        HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except HFValidationError as error:
        raise ModelError(f"model.name {name!r} is neither a folder nor a hub id: {_first_line(error)}") from error
    except HfHubHTTPError as error:
        raise ModelError(f"the hub has no model {name} at revision {revision}: {_first_line(error)}") from error
    except Exception as error:  # whatever the HTTP library calls an unreachable host
        raise ModelError(
            f"the model {name} is not on this machine, and the hub cannot be reached ({_first_line(error)}). "
            "Give a folder, builtin:tiny, or fetch it once where there is a network"
        ) from error
    return False


@contextmanager
def explained(settings: ModelSettings, what: str) -> Iterator[None]:
    """Turns what Transformers raises for files it cannot use into a ModelError that says what to do."""
    try:
        yield
    except GhosttuneError:
        raise
    except Exception as error:  # a file of a model may hold anything, and Transformers then fails anywhere
        text = str(error)
        message = _first_line(error)
        if isinstance(error, TypeError | AttributeError | LookupError):
            message = f"a file of it does not hold what it should ({type(error).__name__}: {message})"
        if "trust_remote_code" in text:
            message = (
                "code that comes with it would have to run. Read that code first; then set model.trust_remote_code: "
                "true, or give --trust-remote-code where you open it"
            )
        elif "no file named" in text and "safetensors" in text:
            message = "it has no safetensors weights (pickled ones can run code and are not loaded): convert them first"
        elif found := re.search(r"(\w+)Config'> for this kind of AutoModel: AutoModelFor(\w+)", text):
            message = f"Transformers has no {found[1]} model for {found[2]}; take another model, or another task.type"
        elif "backend tokenizer" in text:
            message = "there is no tokenizer.json in it, nor an older file that can be converted to one"
        raise ModelError(f"the {what} of {settings.name} cannot be loaded: {message}") from error
    except BaseException as error:
        if gives_up(error):
            raise unusable_tokenizer(settings.name, error) from error
        raise


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".: ") if text else type(error).__name__
