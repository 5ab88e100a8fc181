"""A model that sees, trained as any other: learns what it looks at, is measured, checked, previewed and indexed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from measured import MEASURED
from PIL import Image
from seeing import COLOURS, llava, write_album, write_rows
from transformers import AutoProcessor

from ghostgrad.store import GradientStore
from ghosttune.choosing.index import index
from ghosttune.data.turns import images_of
from ghosttune.errors import ConfigError, InputError
from ghosttune.judging.evaluate import evaluate
from ghosttune.run.tables import read_table
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import Prepared, prepare
from ghosttune.stages.runs import Run
from ghosttune.training import checkpoints
from ghosttune.training.guide import evaluating
from ghosttune.training.order import RowOrder, rows_of_steps
from ghosttune.workflows.check import check
from ghosttune.workflows.preview import preview
from ghosttune.workflows.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module")
def measured(image_config, tmp_path_factory) -> tuple[Run, Prepared]:
    """A run of three steps over rows with and without images, with every instrument, and what it was prepared from."""
    rows = write_album(tmp_path_factory.mktemp("album"), 12, texts=4)
    run = train(image_config(rows, **MEASURED), tmp_path_factory.mktemp("runs") / "run")
    return run, prepare(run.config)


def own_loss(model: Any, prepared: Prepared, row: Any) -> torch.Tensor:
    """Summed nats of one row as Transformers computes them: the model's loss of what the processor makes of it."""
    record = next(record for record in all_records(prepared) if record.example_id == row.example_id)
    processor = AutoProcessor.from_pretrained(prepared.config.model.name)
    text = "".join(part.text for part in prepared.template.render(record.turns))  # type: ignore[union-attr]
    images = [Image.open(image) for image in images_of(record.turns)]
    shown = {"images": images} if images else {}
    inputs = processor(text=text, add_special_tokens=False, return_tensors="pt", **shown)
    labels = inputs["input_ids"].masked_fill(~torch.from_numpy(row.trained), -100)
    return model(**inputs, labels=labels).loss * row.targets


def all_records(prepared: Prepared) -> list[Any]:
    return [*prepared.train_records, *prepared.dev_records, *prepared.guide_records]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))
    return dict(zip(trained, found, strict=True))


def rows_of_step(prepared: Prepared, step: int) -> list[Any]:
    order = RowOrder([len(row) for row in prepared.train.features], 4, prepared.config.train.seed)
    *_, taken = rows_of_steps(order, 4, 1, step)
    return [prepared.train.features[position] for position in taken]


def test_the_loss_of_a_batch_is_that_of_the_model_on_each_row(measured):
    """Rows with and without images in one batch, and padding."""
    _, prepared = measured
    model = adapted_model(prepared).model.eval()
    rows = prepared.train.features
    assert {not row.images for row in rows} == {True, False}  # type: ignore[attr-defined]
    with torch.no_grad():
        together = prepared.task.example_loss(model, prepared.collator(rows))
        alone = torch.stack([own_loss(model, prepared, row) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)  # padding changes the order of float32 sums


def test_only_the_adapter_on_the_part_that_writes_moves(measured):
    run, prepared = measured
    before, after = adapted_model(prepared).model, adapted_model(prepared).model
    checkpoints.restore_adapter(run.folder.checkpoint(3), after)
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    moved = {name for (name, old), new in pairs if not torch.equal(old, new)}
    assert moved and all(".language_model." in name and ".lora_" in name for name in moved)


def test_dev_rows_are_judged_by_their_loss(measured):
    run, prepared = measured
    model = adapted_model(prepared).model.eval()
    checkpoints.restore_adapter(run.folder.checkpoint(run.record["best_step"]), model)
    with torch.no_grad():
        nats = sum(float(own_loss(model, prepared, row)) for row in prepared.dev.features)
    assert run.record["verdict"]["dev_loss"] == pytest.approx(nats / prepared.dev.targets, rel=1e-4)
    assert not run.evaluation and not run.predictions
    with pytest.raises(InputError, match=r"evaluate\.limit: 0"):
        evaluate(run.path, device="cpu")


def test_row_values_are_those_of_one_backward_per_row(measured):
    """The dot product of each row's gradient with that of the guide rows, at every step, and their sum per row."""
    run, prepared = measured
    table = read_table(run.folder, "ledger").to_pylist()
    model = adapted_model(prepared).model
    for step in (1, 2, 3):
        if step > 1:
            checkpoints.restore_adapter(run.folder.checkpoint(step - 1), model)
        with evaluating(model):
            guide = [gradients(model, own_loss(model, prepared, row)) for row in prepared.guide.features]
            goal = {name: sum(one[name] for one in guide) / prepared.guide.targets for name in guide[0]}
            rows = rows_of_step(prepared, step)
            targets = sum(row.targets for row in rows)
            own = [gradients(model, own_loss(model, prepared, row) / targets) for row in rows]
        total = {name: sum(one[name] for one in own) for name in goal}
        norm = torch.stack([gradient.norm() for gradient in total.values()]).norm()
        clip = min(1.0, prepared.config.train.max_grad_norm / (float(norm) + 1e-6))
        expected = [clip * 0.02 * float(sum((one[name] * goal[name]).sum() for name in goal)) for one in own]
        found = {row.example_id: 0.0 for row in rows}
        for entry in table:
            if entry["step"] == step:
                found[entry["example_id"]] += entry["value"]
        np.testing.assert_allclose(list(found.values()), expected, rtol=1e-3, atol=1e-7)
    account = run.record["ledger"]
    drop = account["guide_loss_start"] - account["guide_loss_end"]
    assert account["modules"] + account["modules_residual"] == pytest.approx(drop, abs=1e-9)


def test_stored_gradients_are_those_of_one_backward_per_row(measured):
    run, prepared = measured
    (indexed,) = index(run.path, checkpoints=["last"], device="cpu")
    store = GradientStore.read_sealed(indexed.folder)
    assert sorted(store.ids) == sorted(record.example_id for record in prepared.train_records)
    model = adapted_model(prepared).model.eval()
    checkpoints.restore_adapter(run.folder.checkpoint(3), model)
    for row in prepared.train.features[:3]:
        own = gradients(model, own_loss(model, prepared, row))
        expected = torch.cat([own[name].flatten() for name in sorted(own)])
        found = store.rows([row.example_id])[0]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_four_rows_are_learned_by_looking(image_config, tmp_path):
    """The same words are asked of four images; the answer can only be told by who sees."""
    path = write_album(tmp_path, 5)
    rows = json.loads(path.read_text())
    for row in rows:
        row["conversations"][0]["value"] = "<image>\nWhich colour is it?"
    changes = {"data__dev__path": str(write_rows(tmp_path, rows[4:], "other.json")), "train__learning_rate": 0.01}
    changes |= {
        "train__warmup_steps": 0,
        "train__lr_scheduler_type": "constant",
        "method__target_modules": "all_linear",
    }
    config = image_config(write_rows(tmp_path, rows[:4]), train__max_steps=60, train__eval_steps=60, **changes)
    run = train(config, tmp_path / "run")
    prepared = prepare(run.config)
    model = adapted_model(prepared).model.eval()
    seen: Any = prepared.train.features
    assert len({row.images for row in seen}) == len(COLOURS)
    with torch.no_grad():
        before = prepared.task.example_loss(model, prepared.collator(seen))
        checkpoints.restore_adapter(run.folder.checkpoint(60), model)
        after = prepared.task.example_loss(model, prepared.collator(seen))
        others = [replace(row, images=other.images) for row, other in zip(seen, [*seen[1:], seen[0]], strict=True)]
        blind = prepared.task.example_loss(model, prepared.collator(others))
    assert float(before.min()) > 10 and float(after.max()) < 0.1
    assert float(blind.min()) > 1, "with the images of other rows"


def test_check_and_preview_read_such_a_run(image_config, tmp_path):
    path = write_album(tmp_path, 12, texts=4)
    config = image_config(path)
    report = check(config)
    assert not report.errors and report.plan["format"] == "image_text"
    assert not [finding for finding in report.findings if "image" in finding.message]
    (tmp_path / "images" / "3.png").write_bytes(b"")
    (found,) = [finding for finding in check(config).findings if finding.check == "images that cannot be opened"]
    assert "1 of 12 images" in found.message and "3.png" in found.message and found.rows == ("row3",)
    shown = preview(config, rows=20)
    assert any("<image>" in text for row in shown for text, _ in row.tokens)
    assert not any(is_trained and "<image>" in text for row in shown for text, is_trained in row.tokens)


def test_the_part_that_sees_is_no_target(image_config, tmp_path):
    config = image_config(write_album(tmp_path, 8), method__target_modules=["vision_tower*"])
    with pytest.raises(ConfigError, match="matches no linear layer"):
        adapted_model(prepare(config))


def test_tokens_of_images_that_the_model_does_not_know_are_refused(image_config, tmp_path):
    folder = llava(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["image_token_index"] -= 1
    (folder / "config.json").write_text(json.dumps(settings))
    config = image_config(write_album(tmp_path / "album", 8), model__name=str(folder))
    with pytest.raises(Exception, match="is the token of an image"):
        adapted_model(prepare(config))
