"""One thread: timings and sums do not depend on the machine's load."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
