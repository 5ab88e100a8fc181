"""Shares of tokens equal one backward pass per token, written out, and add up to the score of their row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_attribute import solved
from typer.testing import CliRunner

from ghosttune.choosing import tokens
from ghosttune.choosing.attribute import attribute, by_token, scored, why
from ghosttune.choosing.index import index
from ghosttune.choosing.opened import OpenedRun
from ghosttune.cli.main import app
from ghosttune.data.encoding import Features, RowFeatures
from ghosttune.data.records import Turn
from ghosttune.errors import InputError

BYS = ["cosine", "dot", "adamw", "preconditioned"]
ASKED: dict[str, Any] = {"prompt": "Say red number 7", "completion": "red red 7"}


@pytest.fixture(scope="module")
def precise(indexed) -> Iterator[OpenedRun]:
    """The run with its model in float64."""
    opened = OpenedRun(indexed, "cpu")
    opened.adapted.model.double()
    yield opened


def nats_of_targets(opened, row, step):
    """The nats of each target token, by definition."""
    model = opened.at(step).eval()
    logits = model(input_ids=torch.from_numpy(row.input_ids).long().unsqueeze(0), use_cache=False).logits[0]
    places = np.flatnonzero(row.trained)
    return [-torch.log_softmax(logits[place - 1], 0)[int(row.input_ids[place])] for place in places]


def backward(opened, nats):
    """[numbers] the gradient of the nats by every trained number."""
    named = [parameter for _, parameter in sorted(opened.parameters.items())]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(nats, named, retain_graph=True)])


def one_backward_per_token(opened, row, step):
    """[targets, numbers]."""
    return torch.stack([backward(opened, nats) for nats in nats_of_targets(opened, row, step)])


def under_adamw(opened, gradients, step):
    """The same over √v̂ + ε, v̂ in float32 as it is stored."""
    state = load_file(opened.run.checkpoint(step) / "optimizer.safetensors")
    second = torch.cat([state[f"{name}|exp_avg_sq"].flatten() for name in sorted(opened.parameters)])
    return torch.where(second > 0, gradients / ((second / (1 - 0.999**step)).sqrt() + 1e-8).double(), 0.0)


def towards(opened, answer, step, by):
    """[targets, numbers] of the answer's tokens, preconditioned."""
    found = one_backward_per_token(opened, answer, step) / answer.targets
    parameters = [parameter for _, parameter in sorted(opened.parameters.items())]
    sizes = [parameter.numel() for parameter in parameters]
    if by == "adamw":
        found = under_adamw(opened, found, step)
    if by == "preconditioned":
        rows = torch.stack([one_backward_per_token(opened, row, step).sum(0) for row in opened.train.features])
        parts = zip(parameters, rows.split(sizes, 1), found.split(sizes, 1), strict=True)
        added = 0.3 * rows.square().mean()
        solutions = [
            torch.stack([solved(own.unflatten(1, p.shape), one.view(p.shape), added).flatten() for one in asked])
            for p, own, asked in parts
        ]
        found = torch.cat(solutions, 1)
    return found


@pytest.mark.parametrize(
    ("by", "rtol"), [("cosine", 1e-10), ("dot", 1e-10), ("adamw", 1e-10), ("preconditioned", 2e-3)]
)
def test_pairs_equal_one_backward_per_token(precise, by, rtol):
    """In float64, but for the curvature of rows, which is of those stored in float32."""
    row, answer = precise.train.features[2], precise.prepared.guide.features[0]
    own, asked = one_backward_per_token(precise, row, 6), towards(precise, answer, 6, by)
    exact = own @ asked.mT
    if by == "cosine":
        exact /= own.sum(0).norm() * asked.sum(0).norm()
    (found,) = by_token(precise, precise.train, [row.example_id], [answer], [6], by)
    pairs = torch.tensor(found.pairs, dtype=torch.float64)
    torch.testing.assert_close(pairs, exact, rtol=rtol, atol=rtol * float(exact.abs().max()))
    assert [share.share for share in found.row] == pytest.approx(exact.sum(1).tolist(), rel=rtol)
    assert [share.share for share in found.answer] == pytest.approx(exact.sum(0).tolist(), rel=rtol)
    assert all(share.tokens == 1 for share in (*found.row, *found.answer))


@pytest.mark.parametrize("checkpoints", [["best"], ["all"]])
@pytest.mark.parametrize("by", BYS)
def test_shares_add_up_to_the_score(opened, by, checkpoints):
    found = attribute(opened, **ASKED, by=by, checkpoints=checkpoints, top=3, tokens=2)
    ranked = [*found.helpful[:2], *found.harmful[:2]]
    assert [shares.example_id for shares in found.tokens] == [row.example_id for row in ranked]
    for row, shares in zip(ranked, found.tokens, strict=True):
        assert sum(share.share for share in shares.row) == pytest.approx(row.score, rel=2e-3)
        assert sum(share.share for share in shares.answer) == pytest.approx(row.score, rel=2e-3)
        record = opened.train.record(row.example_id)
        assert "".join(share.text for share in shares.row).startswith(record.reference.split()[0])
        assert "".join(share.text for share in shares.answer).startswith("red red 7")


def test_shares_of_the_guide_loss_equal_one_backward_per_token(precise):
    guide, rows = precise.prepared.guide.features, precise.train.features[2:4]
    targets = sum(row.targets for row in guide)
    # Of the mean, row by row: Llama's norms are float32 in any model, and round what a backward brings them.
    own = [backward(precise, torch.stack(nats_of_targets(precise, row, 6)).sum() / targets) for row in guide]
    direction = under_adamw(precise, torch.stack(own).sum(0), 6)
    found = tokens.guide_shares(precise, [row.example_id for row in rows[::-1]])
    assert list(found) == [row.example_id for row in rows[::-1]]
    for row in rows:
        exact = one_backward_per_token(precise, row, 6) @ direction
        assert [share.share for share in found[row.example_id]] == pytest.approx(exact.tolist(), rel=1e-10)


@pytest.mark.parametrize("by", BYS)
def test_shares_of_projected_rows_add_up_to_the_projected_score(run, by):
    """Not to the score of whole gradients; rows are stored in bfloat16, 8 bits of which keep 0.4 %."""
    index(run, kind="compact@1", device="cpu")
    found = attribute(run, **ASKED, by=by, top=2, tokens=2, device="cpu")
    scores = {row.example_id: row for row in (*found.helpful, *found.harmful)}
    assert found.tokens
    for shares in found.tokens:
        row = scores[shares.example_id]
        assert sum(map(sum, shares.pairs)) == pytest.approx(row.score, rel=0.01)


def test_a_query_of_several_rows_is_not_divided(opened):
    guide = opened.prepared.guide.features
    (found,) = by_token(opened, opened.train, ["row-5"], guide, [6], "dot")
    place = opened.train.ids.index("row-5")
    assert [share.tokens for share in found.answer] == [sum(row.targets for row in guide)]
    assert found.answer[0].share == pytest.approx(float(scored(opened, opened.train, guide, [6], "dot").scores[place]))


def test_the_rest_of_a_long_row_has_one_share(opened, monkeypatch):
    row, answer = opened.train.features[2], opened.prepared.guide.features[0]
    (whole,) = by_token(opened, opened.train, [row.example_id], [answer], [6])
    monkeypatch.setattr(tokens, "MOST_PIECES", 2)
    (short,) = by_token(opened, opened.train, [row.example_id], [answer], [6])
    assert [share.share for share in short.row[:2]] == pytest.approx([share.share for share in whole.row[:2]], rel=1e-4)
    assert (short.row[2].text, short.row[2].tokens) == ("", len(whole.row) - 2)
    assert short.row[2].share == pytest.approx(sum(share.share for share in whole.row[2:]), rel=1e-3)


def test_characters_of_several_tokens_are_one_piece(opened):
    said = "naïve 日本語 🙂\u202e"
    turns = (Turn("user", "Say"), Turn("assistant", said))
    (row,) = opened.encode([replace(opened.train.record("row-5"), turns=turns)]).features
    pieces = tokens.divided(row, opened.prepared.encoder.tokenizer)
    assert "".join(piece.text for piece in pieces).startswith(said)
    assert sum(piece.targets for piece in pieces) == row.targets
    assert any(piece.targets > 1 for piece in pieces)
    masks: Any = [piece.rows[0] for piece in pieces]
    assert np.sum([own.trained for own in masks], 0).tolist() == row.trained.astype(int).tolist()


def test_a_row_of_one_target(opened):
    row = opened.train.features[0]
    trained = np.zeros_like(row.trained)
    trained[-1] = True
    one = replace(row, trained=trained)
    piece: Any
    (piece,) = tokens.divided(one, opened.prepared.encoder.tokenizer)
    assert (piece.targets, piece.rows[0].trained.sum()) == (1, 1)
    (found,) = by_token(opened, opened.train, ["row-5"], [one], [6])
    assert len(found.answer) == 1 and found.answer[0].share == pytest.approx(sum(share.share for share in found.row))
    place = opened.train.ids.index("row-5")
    assert found.answer[0].share == pytest.approx(
        float(scored(opened, opened.train, [one], [6], "cosine").scores[place])
    )


def test_bytes_that_are_never_a_character_are_a_piece():
    class Halves:
        def decode(self, ids, **how):
            return "a" * (len(ids) - 1) + "\ufffd"

    row = Features(0, "x", np.arange(3, dtype=np.int32), np.array([False, True, True]))
    assert [(piece.text, piece.targets) for piece in tokens.divided(row, Halves())] == [("\ufffd", 2)]


def test_what_cannot_be_divided_is_refused(opened):
    with pytest.raises(InputError, match="known for causal_lm alone"):
        tokens.divided(RowFeatures(0, "x", np.arange(3)), None)
    with pytest.raises(InputError, match="--tokens 3 asks for more rows than --top 2 shows"):
        attribute(opened, **ASKED, top=2, tokens=3)


def test_why_divides_the_first_row_alone(opened):
    found = why(opened, ASKED["prompt"], ASKED["completion"], tokens=True)
    (shares,) = found.tokens
    assert shares.example_id == found.helpful[0].example_id and len(shares.answer) == 1
    assert sum(share.share for share in shares.row) == pytest.approx(found.helpful[0].score, rel=1e-3)


def test_what_is_printed(indexed):
    asked = ("--prompt", ASKED["prompt"], "--completion", ASKED["completion"], "--top", "2", "--tokens", "1")
    command = ["attribute", str(indexed), *asked, "--device", "cpu"]
    printed = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    first = found["helpful"][0]["example_id"]
    lines = printed[printed.index(f"\n{first}: ") + 1 :].splitlines()
    assert lines[1].startswith("the answer: red red 7")
    shares = found["tokens"][0]
    largest = max(shares["row"], key=lambda share: abs(share["share"]))
    assert lines[2].startswith(f"{first} by its tokens: ⟦{largest['text']}⟧ {largest['share']:+.3g}")
    pair = max((abs(value), value) for row in shares["pairs"] for value in row)[1]
    assert lines[3].startswith("  by the answer's: ⟦")
    assert lines[4].startswith("  by pairs: ⟦") and f"⟧ {pair:+.3g}" in lines[4].split(",")[0]
    assert sum(map(sum, shares["pairs"])) == pytest.approx(found["helpful"][0]["score"], rel=1e-3)


def test_shades(capsys):
    from rich.console import Console

    from ghosttune.cli.display import Display

    display = Display()
    display.console = Console(force_terminal=True, color_system="truecolor", highlight=False, markup=False)
    shares = [tokens.Share("\x1b[31mred", 1, 0.5), tokens.Share("\n[bold]", 1, -1.0), tokens.Share("", 9, 0.0)]
    display.shaded(tokens.TokenShares("row\x07", shares, shares[:1], [[0.5], [-1.0], [0.0]]))
    shown = capsys.readouterr().out
    assert shown == (
        "row\\u0007: \x1b[30;48;2;128;255;128m\\u001b[31mred\x1b[0m\x1b[30;48;2;255;0;0m\\u000a[bold]\x1b[0m"
        "\x1b[30;48;2;255;255;255m…\x1b[0m\n"
    )
