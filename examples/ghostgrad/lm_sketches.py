"""A language model's rows by gradient: which training sentences push the model the way a query does.

Two made-up languages share an alphabet; sentences of the query's language come out on top. Packed rows: several
sentences lie in one row, and each still gets a gradient of its own.

    python examples/ghostgrad/lm_sketches.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostgrad import PROFILES, GradientEngine, Norms, Sketcher, Sketches

torch.manual_seed(0)
torch.set_num_threads(1)

LETTERS, LENGTH, WIDTH, SENTENCES = 12, 20, 32, 24


class Reader(nn.Module):
    """Next-letter logits of rows in which `sentence` [R, T] says which sentence a position belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)
        self.norm = nn.RMSNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.head = nn.Linear(WIDTH, LETTERS, bias=False)
        self.head.weight = self.letters.weight  # tied

    def forward(self, letters: Tensor, sentence: Tensor) -> Tensor:
        hidden = self.letters(letters)
        query, key, value = self.mix(self.norm(hidden)).chunk(3, -1)
        allowed = (sentence.unsqueeze(2) == sentence.unsqueeze(1)).tril()
        hidden = hidden + F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.head(hidden + self.down(F.gelu(self.up(hidden))))


def sentences(language: int, count: int) -> Tensor:
    """[count, LENGTH]: each letter follows from the one before, in another way in each language."""
    steps = torch.where(torch.rand(count, LENGTH - 1) < 0.9, 1 if language == 0 else 5, 2)
    return torch.cat([torch.randint(0, LETTERS, (count, 1)), steps], 1).cumsum(1) % LETTERS


def loss(letters: Tensor, sentence: Tensor) -> Tensor:
    logits, same = model(letters, sentence)[:, :-1], sentence[:, 1:] == sentence[:, :-1]
    return (F.cross_entropy(logits.mT, letters[:, 1:], reduction="none") * same).sum()


model = Reader()
language = torch.arange(SENTENCES) % 2
corpus = torch.cat([sentences(int(which), 1) for which in language])
packed, sentence = corpus.view(-1, 2 * LENGTH), torch.arange(SENTENCES).repeat_interleave(LENGTH).view(-1, 2 * LENGTH)

engine = GradientEngine(model)
shapes = {name: tuple(p.shape) for name, p in engine.parameters.items()}
sketcher = Sketcher(shapes, PROFILES["standard@1"], tables=frozenset({"letters.weight"}))
sketches, norms = Sketches(sketcher), Norms()

with engine.probe(sketches, norms, examples=sentence) as backward:
    backward(loss(packed, sentence))
rows, lengths = sketches.rows().float(), norms.total()

query = sentences(1, 16)
with engine.probe(sketches) as backward:
    backward(loss(query, torch.arange(16).unsqueeze(1).expand(-1, LENGTH)))
similarity = F.cosine_similarity(rows, sketches.rows().float().sum(0), dim=1)

top = similarity.argsort(descending=True)[: SENTENCES // 2]
share = language[top].double().mean().item()
assert lengths.shape == (SENTENCES,) and (lengths > 0).all()
assert share > 0.85, share
assert all(p.grad is None for p in model.parameters())
print(f"{share:.0%} of the upper half of the similarities is the query's language")
