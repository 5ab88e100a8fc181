"""The same numbers on a GPU."""

from __future__ import annotations

import pytest
import torch

from ghostgrad import Dots, GradientEngine, Gram, Norms, Sketcher, Sketches, SketchOptions
from ghostgrad.tiny import Switches, losses, packed, padded, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("switches", [Switches(), Switches(tied=True, reused=True, checkpointed=True)], ids=str)
def test_cpu_and_gpu_agree(switches: Switches, layout: str) -> None:
    batch, results = padded(4) if layout == "padded" else packed(4), []
    model = tiny(switches)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    options = SketchOptions(9, 2, ("*",), True, "gaussian", "even", 0, torch.float32)
    for device in ("cpu", "cuda"):
        model, batch = model.to(device), {name: value.to(device) for name, value in batch.items()}
        observers = (
            Norms(),
            Dots({name: torch.ones_like(p) for name, p in model.named_parameters()}),
            Gram(),
            Sketches(Sketcher(shapes, options, frozenset())),
        )
        where = {"examples": batch["document"]} if layout == "packed" else {}
        with torch.device(device), GradientEngine(model).observe(*observers, **where):
            losses(model, batch, 4).sum().backward()
        results.append([observer.total().cpu() for observer in observers[:3]] + [observers[3].rows().cpu()])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-9 if on_cpu.dtype == torch.float64 else 1e-5, atol=1e-9)
