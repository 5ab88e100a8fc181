"""What PEFT and Transformers say or do that nobody asked for, kept from the user."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ghosttune.errors import GhosttuneError, ModelError

MODEL_CODE = ("/transformers/", "/transformers_modules/")
"""Where the code of models lies."""

MODEL_FILES = ("modeling_", "/cache_utils", "/transformers/generation/")
"""What its files are called, and what they do their writing with."""


@contextmanager
def without_upstream_reports() -> Iterator[None]:
    """Transformers reports weights that we refuse or the model does not need, and padding that we have seen to."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def without_upstream_warnings() -> Iterator[None]:
    """Without what PEFT 0.21 says that nobody could mend, and without the CUDA code it would compile for BOFT.

    An attribute's old name, norms that are not torch's own, and learned prompts that take no position numbers: rows of
    one length need none. And what torch says of sparse tensors where nobody chose whether they are checked. PEFT is not
    imported for it: that takes seconds, and a model without an adapter does without.
    """
    import torch

    boft: Any = sys.modules.get("peft.tuners.boft.layer")
    if boft is not None:
        boft._FBD_CUDA = boft._FBD_CUDA or False  # None: to be compiled; False: computed with torch alone
    if not torch.sparse.check_sparse_tensor_invariants.is_enabled():
        torch.sparse.check_sparse_tensor_invariants.disable()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def checkpointing_word() -> str:
    """What Transformers calls the checkpointing of activations in its names: `gradient` before 5.20."""
    from transformers import PreTrainedModel

    return "activation" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient"


def checkpoint_activations(model: Any) -> None:
    """Switches it on as the Trainer does: not reentrant."""
    getattr(model, f"{checkpointing_word()}_checkpointing_enable")({"use_reentrant": False})


def keep_activations(model: Any) -> None:
    """Switches it off."""
    getattr(model, f"{checkpointing_word()}_checkpointing_disable")()


def import_peft() -> None:
    """Imports PEFT, and bitsandbytes only where a base of this process is quantized by it.

    PEFT asks for it before it adapts any layer, and importing it takes as long as importing torch. So PEFT is told that
    it is not installed, until `tell_peft_of_bitsandbytes`.
    """
    if "peft" in sys.modules or "bitsandbytes" in sys.modules:
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # what Python takes for not installed
    try:
        from peft import import_utils

        import_utils.is_bnb_available()  # which remembers its answer, as the other does
        import_utils.is_bnb_4bit_available()
    finally:
        del sys.modules["bitsandbytes"]


def tell_peft_of_bitsandbytes() -> None:
    """Lets PEFT look for bitsandbytes again."""
    from peft import import_utils

    import_utils.is_bnb_available.cache_clear()
    import_utils.is_bnb_4bit_available.cache_clear()


@contextmanager
def without_videos() -> Iterator[dict[str, Any]]:
    """While inside, processors are made without the part for videos where torchvision, which that needs, is missing.

    Gives what such a processor is to be told besides.
    """
    from importlib.util import find_spec

    from transformers import ProcessorMixin

    if find_spec("torchvision") is not None:
        yield {}
        return
    before: Any = ProcessorMixin.__dict__["get_attributes"]

    def others(cls: type) -> list[str]:
        return [name for name in before.__func__(cls) if "video" not in name]

    ProcessorMixin.get_attributes = classmethod(others)  # type: ignore[method-assign]
    try:
        yield {"video_processor": None}
    finally:
        ProcessorMixin.get_attributes = before


@contextmanager
def targets_as_named() -> Iterator[None]:
    """While inside, LoRA goes to the modules it is told to.

    In families with fused experts PEFT 0.21 takes `gate_proj`, `up_proj`, `down_proj` and `gate` for names of
    Transformers 4, drops the modules that are called so now (shared experts, dense layers) and adapts the fused experts
    instead, which nobody named.
    """
    import_peft()
    from peft.utils import transformers_weight_conversion as conversion

    before = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = before


@contextmanager
def faults_of(name: str, work: str = "be trained on these rows", else_: str = "") -> Iterator[None]:
    """Turns what a model's own code raises inside into a ModelError that names the model, the place and what to do.

    `work` is what it cannot do, and `else_` what else than another model or other packages there is to take.
    """
    try:
        yield
    except (GhosttuneError, MemoryError):
        raise
    except Exception as error:
        at = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_a_model(frame.filename)]
        if not at or "out of memory" in str(error):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        place = f"{at[-1].filename.rpartition('/')[2]}, line {at[-1].lineno}"
        raise ModelError(
            f"the code of {name} cannot {work}: it fails with {type(error).__name__}: {first} "
            f"({place}). Look whether it needs other inputs than texts or other versions of its packages, {else_}or "
            "take another model"
        ) from error


def _is_of_a_model(file: str) -> bool:
    inside = file.replace("\\", "/")
    return any(name in inside for name in MODEL_FILES) and any(part in inside for part in MODEL_CODE)


def gives_up(error: BaseException) -> bool:
    """Whether it is how Hugging Face's tokenizers, which are Rust, say that they cannot go on.

    That is a bare Exception, or a panic, which is no Exception at all: unless it is turned into one it ends whichever
    thread it reaches, as a call to exit would.
    """
    return type(error) is Exception or type(error).__name__ == "PanicException"


def refusing_in_words(tokenizer: Any, name: str) -> Any:
    """The tokenizer of the model `name`; from now on it raises ModelError where its files do not let it go on."""
    if not tokenizer.is_fast:
        return tokenizer
    kind = type(tokenizer)

    def refusing(method: str) -> Any:
        def call(self: Any, *given: Any, **options: Any) -> Any:
            try:
                return getattr(super(own, self), method)(*given, **options)
            except BaseException as error:
                if gives_up(error):
                    raise unusable_tokenizer(name, error) from error
                raise

        return call

    own: Any = type(kind.__name__, (kind,), {method: refusing(method) for method in ("_encode_plus", "_decode")})
    tokenizer.__class__ = own
    return tokenizer


def unusable_tokenizer(name: str, error: BaseException) -> ModelError:
    """What to say of an error that `gives_up`."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(f"the tokenizer of {name} cannot be used: its tokenizer.json leads to {first!r}; mend that file")
