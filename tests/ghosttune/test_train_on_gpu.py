"""The same runs on a CUDA device; skipped, and saying so, where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ghosttune import train
from ghosttune.workflows.train import Stopped, resume

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def losses(run):
    return [event["loss"] for event in run.events if event["event"] == "eval"]


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_trains_to_the_losses_of_the_cpu(make_config, tmp_path, device):
    on_cpu = train(make_config(), tmp_path / "cpu")
    on_cuda = train(make_config(model__device=device), tmp_path / "cuda")
    assert next(on_cuda.pipeline().model.parameters()).device.type == "cuda"
    np.testing.assert_allclose(losses(on_cuda), losses(on_cpu), rtol=1e-3)
    assert on_cuda.record["peak_memory_mb"]["cuda"] > 0


def test_auto_takes_the_gpu_and_says_so(make_config, tmp_path):
    run = train(make_config(model__device="auto"), tmp_path / "run")
    assert run.config.model.device == "cuda" and run.record["origins"]["model.device"] == "derived"


def test_resumed_on_cuda_goes_on_closely(make_config, tmp_path):
    settings = {"model__device": "cuda", "method__lora_dropout": 0.1}
    whole = train(make_config(**settings), tmp_path / "whole")

    def stop(event):
        if event["event"] == "step" and event["step"] == 3:
            torch.cuda.synchronize()
            import signal

            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        train(make_config(**settings), tmp_path / "parts", listen=stop)
    np.testing.assert_allclose(losses(resume(tmp_path / "parts")), losses(whole), rtol=1e-3)
