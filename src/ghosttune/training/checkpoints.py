"""Everything a run needs to go on as if it had never stopped, in safetensors and JSON, verified when it is read."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from ghosttune.errors import RunError, listed
from ghosttune.models.loading import save_adapter
from ghosttune.models.starting import START
from ghosttune.models.weights import errors_of_the_disk
from ghosttune.run.directory import write_folder

if TYPE_CHECKING:
    from torch.optim import Optimizer

ADAPTER = "adapter_model.safetensors"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
INSTRUMENTS = "instruments.safetensors"
RANDOM = "random.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
NEEDED = {WEIGHTS, OPTIMIZER, RANDOM, INSTRUMENTS, STATE}
"""Files without which there is nothing to resume from."""


def write_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: Optimizer,
    schedule: dict[str, Any],
    counters: dict[str, Any],
    instruments: dict[str, torch.Tensor],
    generators: list[torch.Tensor],
    trainer_state: str,
) -> None:
    """A complete checkpoint, or none: the folder gets its name when every byte is on disk.

    `schedule` is the learning-rate scheduler's state, `counters` what is counted, `instruments` what they keep,
    `generators` the state of torch's generator in every process, `trainer_state` the Trainer's own state as JSON.
    Four times the adapter's size, six with a ledger: the weights once as they train and once as PEFT reads them, which
    for some methods is less (a learned prompt without the network that makes it).
    """

    def fill(partial: Path) -> None:
        if hasattr(model, "peft_config"):
            write_adapter(model, partial)
        names = parameter_names(model)
        arrays, words = _random_state(generators)
        with errors_of_the_disk():
            save_file(_exact_weights(model), str(partial / WEIGHTS))
            save_file(_optimizer_tensors(optimizer, names), str(partial / OPTIMIZER))
            save_arrays(arrays, str(partial / RANDOM))
            save_file({n: t.detach().cpu().contiguous() for n, t in instruments.items()}, str(partial / INSTRUMENTS))
        state = {"schedule": schedule, "counters": counters, "random": words, "groups": _group_options(optimizer)}
        state["scalars"] = _optimizer_scalars(optimizer, names)
        (partial / STATE).write_text(json.dumps(state))
        (partial / "trainer_state.json").write_text(trainer_state)
        digests = {file.name: _digest(file) for file in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(digests, indent=2))

    write_folder(folder, fill)


def write_adapter(model: torch.nn.Module, folder: Path) -> None:
    """The adapter as `save_adapter` writes it, with the system's own error for a full disk."""
    with errors_of_the_disk():
        save_adapter(model, folder)


def _exact_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes or drew, by parameter name."""
    return {name: p.detach().cpu().contiguous() for name, p in _own_parameters(model).items()}


def _own_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    trained = set(model.trained)  # type: ignore[arg-type]  # also what this phase keeps still
    return {name: p for name, p in model.named_parameters() if name in trained or f".{START}." in name}


def verify(folder: Path) -> None:
    """RunError naming the first file that is not what was written."""
    try:
        digests = dict(json.loads((folder / MANIFEST).read_text()))
        wrong = [name for name in NEEDED | digests.keys() if _digest(folder / name) != digests.get(name)]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder} is damaged: {error}. Delete it to continue from the checkpoint before it.") from error
    if wrong:
        changed = ", ".join(sorted(wrong))
        raise RunError(f"{folder} is damaged: {changed} changed. Delete it to continue from the checkpoint before it.")


def read_counters(folder: Path) -> dict[str, Any]:
    return _read_state(folder)["counters"]


def read_instruments(folder: Path, device: torch.device) -> dict[str, torch.Tensor]:
    return load_file(str(folder / INSTRUMENTS), device=str(device))


def restore_adapter(folder: Path, model: torch.nn.Module) -> None:
    """Loads the adapter's weights; RunError when a tensor is missing or left over."""
    saved = load_file(str(folder / WEIGHTS))
    expected = _own_parameters(model)
    shapes, wanted = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (saved, expected))
    if shapes != wanted:
        differing = sorted({*shapes.items()} ^ {*wanted.items()})
        raise RunError(f"{folder} does not fit the configured adapter: {listed((name for name, _ in differing), 3)}")
    with torch.no_grad():
        for name, tensor in saved.items():
            expected[name].copy_(tensor)


def weights_digest(folder: Path) -> str:
    """sha256 of the trained weights in a checkpoint."""
    return _digest(folder / WEIGHTS)


def second_moments(folder: Path, beta: float, device: torch.device) -> dict[str, torch.Tensor]:
    """AdamW's v̂ (the corrected second moment) of each parameter that has been updated, by name."""
    saved = load_file(str(folder / OPTIMIZER), device=str(device))
    return {
        name: tensor / (1 - beta ** float(saved[f"{name}|step"]))
        for key, tensor in saved.items()
        if (name := key.removesuffix("|exp_avg_sq")) != key
    }


def restore_optimizer(folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Loads the optimizer's moments and options by parameter name; returns the scheduler's state."""
    state = _read_state(folder)
    saved = load_file(str(folder / OPTIMIZER)) | state.get("scalars", {})
    names = parameter_names(model)
    for options, group in zip(state["groups"], optimizer.param_groups, strict=True):
        group.update(options)
        for parameter in group["params"]:
            prefix = f"{names[parameter]}|"
            own = {key.removeprefix(prefix): tensor for key, tensor in saved.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if isinstance(value, torch.Tensor) and key != "step" else value
                for key, value in own.items()
            }
    return state["schedule"]


def restore_random(folder: Path, process: int = 0) -> None:
    """Sets the generators of Python, numpy and torch to where they were, torch's to where it was in this process."""
    arrays = load_arrays(str(folder / RANDOM))
    words = _read_state(folder)["random"]
    version, gauss = words["python"]
    random.setstate((version, tuple(int(word) for word in arrays["python"]), gauss))
    kind, position, has_gauss, cached = words["numpy"]
    np.random.set_state((kind, arrays["numpy"], position, has_gauss, cached))
    torch.set_rng_state(torch.from_numpy(arrays[f"torch.{process}"].copy()))
    if torch.cuda.is_initialized() and "cuda" in arrays:
        torch.cuda.set_rng_state(torch.from_numpy(arrays["cuda"].copy()))


def parameter_names(model: torch.nn.Module) -> dict[torch.Tensor, str]:
    """Name of each parameter; one that does not train in this phase has moments all the same."""
    return {parameter: name for name, parameter in model.named_parameters()}


def _optimizer_tensors(optimizer: Optimizer, names: dict[torch.Tensor, str]) -> dict[str, torch.Tensor]:
    return {
        f"{names[parameter]}|{key}": value.detach().cpu().clone()  # 8-bit parameters share one table of values
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _optimizer_scalars(optimizer: Optimizer, names: dict[torch.Tensor, str]) -> dict[str, int | float]:
    """What an optimizer keeps beside its tensors: bitsandbytes and Adafactor count their updates so."""
    return {
        f"{names[parameter]}|{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if not isinstance(value, torch.Tensor)
    }


def _group_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _random_state(generators: list[torch.Tensor]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    arrays = {"python": np.array(words, np.uint32), "numpy": np.asarray(keys)}
    arrays |= {f"torch.{process}": state.numpy() for process, state in enumerate(generators)}
    if torch.cuda.is_initialized():
        arrays["cuda"] = torch.cuda.get_rng_state().numpy()
    return arrays, {"python": [version, gauss], "numpy": [kind, int(position), int(has_gauss), float(cached)]}


def _read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE).read_text())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
