"""A small language model in plain torch, with every switch the engine must be exact under."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WORDS, WIDTH = 19, 8


class Block(nn.Module):
    """Attention over the positions allowed by a mask, then an MLP; LayerNorm and RMSNorm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.between = nn.RMSNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 12)
        self.down = nn.Linear(12, WIDTH)

    def forward(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        query, key, value = self.mix(self.before(hidden)).chunk(3, -1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        hidden = hidden + self.out(attended)
        return hidden + self.down(F.gelu(self.up(self.between(hidden))))


@dataclass(frozen=True)
class Switches:
    """tied: head and table share a weight; reused: one block runs twice; checkpointed: non-reentrant."""

    tied: bool = False
    reused: bool = False
    checkpointed: bool = False


class TinyLM(nn.Module):
    """Next-word logits [B, T, WORDS] from a dict with `ids` [B, T] and `document` [B, T] (-1 for padding).

    Positions attend to earlier ones of the same document. The position table is looked up once for the whole batch.
    """

    def __init__(self, switches: Switches, longest: int = 16):
        super().__init__()
        self.switches = switches
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(longest, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(1 if switches.reused else 2)])
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if switches.tied:
            self.head.weight = self.words.weight

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        document = batch["document"]
        length = document.shape[1]
        hidden = self.words(batch["ids"])
        if "place" in batch:
            hidden = hidden + self.places(batch["place"])
        else:
            hidden = hidden + self.places(torch.arange(length).unsqueeze(0))
        allowed = (document.unsqueeze(2) == document.unsqueeze(1)).tril()
        allowed = allowed | torch.eye(length, dtype=torch.bool)
        for block in [*self.blocks] * (2 if self.switches.reused else 1):
            if self.switches.checkpointed:
                hidden = checkpoint(block, hidden, allowed, use_reentrant=False)
            else:
                hidden = block(hidden, allowed)
        return self.head(hidden)


def tiny(switches: Switches | None = None, seed: int = 0, dtype: torch.dtype = torch.float64) -> TinyLM:
    """Seeded random parameters, none at 0 or 1."""
    model = TinyLM(switches or Switches()).to(dtype)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.4 + 0.1)
    return model


def padded(examples: int, side: str = "right", longest: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Rows of unequal lengths (longest … 1), padded on `side`; of four or more rows the last has no target at all."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(longest, 1, examples).long()
    place = torch.arange(longest).expand(examples, -1)
    real = place < lengths[:, None] if side == "right" else place >= longest - lengths[:, None]
    ids = torch.randint(1, WORDS, (examples, longest), generator=random)
    owner = torch.arange(examples).unsqueeze(1).expand(-1, longest)
    return {"ids": ids.masked_fill(~real, 0), "document": owner.masked_fill(~real, -1)}


def packed(examples: int, seed: int = 0) -> dict[str, Tensor]:
    """The rows of `padded` laid one after another into two packed rows, with their own position numbers."""
    source = padded(examples, seed=seed)
    real = source["document"] >= 0
    ids, document = source["ids"][real], source["document"][real]
    place = torch.arange(real.shape[1]).expand(len(real), -1)[real]
    width = -(-len(ids) // 2)
    # A document may not straddle two rows: start the second row at the first document that would.
    cut = next((n for n in range(width, len(ids)) if document[n] != document[n - 1]), len(ids))
    width = max(cut, len(ids) - cut)
    rows = {"ids": torch.zeros(2, width, dtype=torch.long), "document": torch.full((2, width), -1)}
    rows["place"] = torch.zeros(2, width, dtype=torch.long)
    for row, part in enumerate((slice(0, cut), slice(cut, None))):
        for name, values in (("ids", ids), ("document", document), ("place", place)):
            rows[name][row, : len(values[part])] = values[part]
    return rows


def losses(model: nn.Module, batch: dict[str, Tensor], examples: int, divisor: int | None = None) -> Tensor:
    """[examples] contribution of each document to the mean next-word loss (or the sum over `divisor`)."""
    logits, document, ids = model(batch)[:, :-1], batch["document"], batch["ids"]
    target = (document[:, 1:] >= 0) & (document[:, 1:] == document[:, :-1])
    each = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none") * target
    owner = torch.where(target, document[:, 1:], examples)
    sums = each.new_zeros(examples + 1).index_add(0, owner.reshape(-1), each.reshape(-1))
    return sums[:-1] / max(1, divisor or int(target.sum()))
