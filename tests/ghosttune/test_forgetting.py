"""A run that forgets rows of another: its losses, where it starts and stops, what it refuses, and how it is judged."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import interrupt_at
from typer.testing import CliRunner

from ghosttune.choosing.opened import OpenedRun
from ghosttune.cli.main import app
from ghosttune.config.loading import load_config
from ghosttune.data.selecting import ids_in
from ghosttune.errors import ConfigError, DataError, InputError, RunError
from ghosttune.proving.freezing import differences
from ghosttune.run.directory import RunDir
from ghosttune.stages.prepare import prepare
from ghosttune.stages.runs import open_run
from ghosttune.tasks.unlearning import forgetting_loss
from ghosttune.training.unlearning import Unlearning
from ghosttune.workflows.forget import forget
from ghosttune.workflows.train import Stopped, resume, train

# PEFT 0.21 asks Transformers 5.23 by a name that Transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

GONE = ["row-2", "row-5", "row-7", "row-11", "row-12", "row-20", "row-23"]
BRIEF = ("train.per_device_train_batch_size=4", "evaluate.limit=0", "forget.retain_weight=0.1")


@pytest.fixture(scope="module")
def learned(tiny_model, tmp_path_factory) -> Path:
    """Twelve steps on 28 named rows, in RUN; never changed."""
    folder = tmp_path_factory.mktemp("learned")
    rows = [
        {"id": f"row-{n}", "prompt": f"Say number {n}", "completion": f"number {n * 7 % 30} it is", "split": "train"}
        for n in range(28)
    ]
    rows += [{**row, "id": f"dev-{n}", "prompt": f"Tell {n}", "split": "dev"} for n, row in enumerate(rows[:6])]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model.name": str(tiny_model),
        "model.device": "cpu",
        "data.train.path": str(folder / "rows.jsonl"),
        "method.lora_dropout": 0.1,
        "train.max_steps": 12,
        "train.per_device_train_batch_size": 4,
        "train.learning_rate": 0.02,
        "train.warmup_steps": 1,
        "measure.norms": None,
        "measure.ledger": None,
        "evaluate.limit": 0,
    }
    train(load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in settings.items()]), folder / "run")
    return folder / "run"


def named(path: Path, ids: list[str] = GONE) -> Path:
    path.write_text("".join(f"{own}\n" for own in ids))
    return path


# --- the losses ---


@pytest.mark.parametrize("loss", ["npo", "gradient_ascent"])
def test_losses_and_gradients_are_those_written_out_in_float64(loss):
    random = np.random.default_rng(0)
    nats, start = random.uniform(0.01, 60, 40), random.uniform(0.01, 60, 40)
    nats[:2], start[:2] = (900.0, 0.1), (0.1, 900.0)  # both ends of the exponential
    forgets, beta, weight = random.random(40) < 0.5, 0.3, 2.5
    expected, slopes = [], []
    for now, before, gone in zip(nats, start, forgets, strict=True):
        if not gone:
            expected.append(weight * now)
            slopes.append(weight)
        elif loss == "gradient_ascent":
            expected.append(-now)
            slopes.append(-1.0)
        else:  # -(2/β) log σ(-β log(π/π_ref)), and equation 4 of the paper: the weight 2 π^β / (π^β + π_ref^β)
            ratio = beta * (before - now)
            expected.append(2 / beta * (max(ratio, 0) + math.log1p(math.exp(-abs(ratio)))))
            slopes.append(-2 / (1 + math.exp(min(-ratio, 700))))
    given = torch.tensor(nats, requires_grad=True)
    found = forgetting_loss(given, torch.tensor(start), torch.tensor(forgets), loss, beta, weight)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.asarray(given.grad), slopes, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", ["npo", "gradient_ascent"])
def test_what_a_batch_trains_is_that_of_log_probabilities_one_row_at_a_time(make_config, loss):
    from ghosttune.stages.model import adapted_model

    prepared = prepare(make_config())
    model = adapted_model(prepared).model.double().eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.2)
    rows: Any = prepared.train.features
    starts = {3: 20.0, 4: 55.0, 9: 31.0}
    settings = load_config({"forget": {"run": "r", "rows": "f", "loss": loss}, "data": {"train": {"path": "x"}}}).forget
    unlearning = Unlearning(settings, rows, starts)
    batch = unlearning.beside(prepared.collator)([rows[place] for place in (2, 3, 4, 8, 9)])
    total = unlearning.loss(prepared.task.example_loss(model, batch), batch).sum()
    gradients = torch.autograd.grad(total, trained)

    expected = torch.zeros((), dtype=torch.float64)
    for place in (2, 3, 4, 8, 9):
        row = rows[place]
        ids = torch.tensor(np.asarray(row.input_ids)).long()
        logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        logp = torch.stack([logps[t - 1, ids[t]] for t in range(len(ids)) if row.trained[t]]).sum()
        if place not in starts:
            expected = expected - settings.retain_weight * logp
        elif loss == "npo":
            ratio = logp + starts[place]  # log π - log π_ref
            expected = expected - 2 / settings.beta * torch.log(1 / (1 + torch.exp(settings.beta * ratio)))
        else:
            expected = expected + logp
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    for own, other in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


# --- the run ---


@pytest.fixture(scope="module")
def forgotten(learned, tmp_path_factory) -> Path:
    """The run that forgot seven rows, with all that the command can add; never changed."""
    folder = tmp_path_factory.mktemp("forgotten")
    rows = [json.loads(line) for line in (learned.parent / "rows.jsonl").read_text().splitlines()]
    others = [
        {**row, "id": f"other-{row['id']}", "prompt": f"Now {row['prompt']}"} for row in rows if row["id"] in GONE
    ]
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    arguments = ["forget", str(learned), "--rows", str(named(folder / "gone.txt")), "--out", str(folder / "run")]
    arguments += ["--steps", "6", "--retrain", "--paraphrases", str(folder / "others.jsonl"), "--until", "9"]
    arguments += ["--json", *(part for setting in BRIEF for part in ("--set", setting))]
    result = CliRunner().invoke(app, [*arguments, "--set", "train.learning_rate=0.01"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((folder / "run/forgetting/forgetting.json").read_text())
    return folder / "run"


def losses(run: Path, split: str) -> list[float]:
    return [event["loss"] for event in RunDir(run).events() if event.get("split") == split]


def nats_by_peft(run: Path, ids: list[str]) -> dict[str, tuple[float, int]]:
    """Id -> (nats, tokens) under RUN/adapter, as Transformers and PEFT alone read it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    opened = OpenedRun(run, "cpu")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(opened.config.model.name), run / "adapter")
    model.eval()
    found = {}
    features: Any = opened.train.features
    for row in features:
        if row.example_id in ids:
            with torch.no_grad():
                tokens = torch.tensor(np.asarray(row.input_ids)).long()
                logps = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
            places = np.flatnonzero(row.trained)
            found[row.example_id] = (-float(sum(logps[t - 1, tokens[t]] for t in places)), len(places))
    return found


def test_a_run_starts_where_the_other_ended_and_forgets(learned, forgotten):
    best = open_run(learned).record["verdict"]["dev_loss"]
    assert losses(forgotten, "dev")[0] == pytest.approx(best, rel=1e-6)
    before = nats_by_peft(learned, GONE)
    start = sum(nats for nats, _ in before.values()) / sum(tokens for _, tokens in before.values())
    assert losses(forgotten, "forgotten")[0] == pytest.approx(start, rel=1e-5)
    assert losses(forgotten, "forgotten")[-1] > start + 0.05
    record = open_run(forgotten).record
    assert record["best_step"] == record["step"] == 6, "the newest adapter is the one"
    digest = hashlib.sha256("".join(f"{own}\n" for own in sorted(GONE)).encode()).hexdigest()
    assert record["forgets"]["forgotten"] == {"rows": 7, "sha256": digest}
    assert record["forgets"]["retained"]["rows"] == 21
    assert record["forgets"]["run"] == str(learned)
    assert record["forgets"]["start_loss"] == pytest.approx(start, rel=1e-5)


def test_it_is_judged_beside_the_run_and_beside_one_that_never_saw_the_rows(learned, forgotten):
    found = json.loads((forgotten / "forgetting/forgetting.json").read_text())
    retrained = forgotten / "forgetting/retrained"
    train_ids = {row.example_id for row in OpenedRun(learned, "cpu").train.features}
    assert {row.example_id for row in OpenedRun(retrained, "cpu").train.features} == train_ids - set(GONE)
    for name, folder in (("before", learned), ("after", forgotten)):
        own = nats_by_peft(folder, GONE)
        loss = sum(nats for nats, _ in own.values()) / sum(tokens for _, tokens in own.values())
        assert found["rows"]["forgotten"]["loss"][name]["value"] == pytest.approx(loss, rel=1e-5)
    rows = found["rows"]
    assert {name: own["loss"]["after"]["n"] for name, own in rows.items()} == {
        "forgotten": 7,
        "retained": 21,
        "held_out": 6,
        "paraphrases": 7,
    }
    for own in rows.values():
        for against in ("before", "retrained"):
            change = own["loss"]["after"]["value"] - own["loss"][against]["value"]
            assert own[f"from_{against}"]["value"] == pytest.approx(change, abs=1e-9)
    after, never = rows["forgotten"]["loss"]["after"]["value"], rows["forgotten"]["loss"]["retrained"]
    words = "still known" if after < never["low"] else "pushed beyond" if after > never["high"] else "as if never seen"
    assert found["verdict"]["forgotten"] == words


def test_resuming_is_bit_identical(forgotten, tmp_path):
    config, out = open_run(forgotten).config, tmp_path / "run"
    with pytest.raises(Stopped):
        train(config, out, listen=interrupt_at(3))
    resume(out)
    whole = tmp_path / "whole"
    shutil.copytree(forgotten, whole, ignore=shutil.ignore_patterns("forgetting"))
    assert differences(whole, out) == []


def test_everything_opens_the_run(forgotten, tmp_path):
    from ghosttune.inference.pipeline import Pipeline
    from ghosttune.judging.evaluate import evaluate
    from ghosttune.workflows.infer import infer
    from ghosttune.workflows.merge import merge
    from ghosttune.workflows.report import report

    run = tmp_path / "run"
    shutil.copytree(forgotten, run)
    pipeline = Pipeline.open(str(run))
    pipeline.max_new_tokens = 3
    assert pipeline.generate(["Say number 3"])
    found = evaluate(run, overrides=["evaluate.limit=2", "evaluate.max_new_tokens=3"])
    assert found["dev"]["questions"] == 2
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Say number 3"}\n')
    infer(str(run), tmp_path / "asked.jsonl", tmp_path / "said.jsonl", max_new_tokens=3)
    assert (tmp_path / "said.jsonl").read_text().count("\n") == 1
    merge(run, tmp_path / "merged")
    report(run)
    assert (run / "report/index.html").is_file()


def test_it_stops_at_the_first_evaluation_at_its_mark(learned, tmp_path):
    gone = named(tmp_path / "gone.txt")
    own = [*BRIEF, "train.eval_steps=1", "train.learning_rate=0.01"]
    whole = forget(learned, gone, tmp_path / "whole", steps=6, overrides=own)
    curve = losses(tmp_path / "whole", "forgotten")
    mark = (curve[2] + curve[3]) / 2
    assert curve == sorted(curve) and whole["step"] == 6
    stopped = forget(learned, gone, tmp_path / "stopped", steps=6, until=mark, overrides=own)
    assert stopped["step"] == 3 and losses(tmp_path / "stopped", "forgotten") == curve[:4]
    assert open_run(tmp_path / "stopped").record["status"] == "finished"


def test_a_second_call_keeps_what_is_trained_and_refuses_other_settings(learned, forgotten, tmp_path):
    before = (forgotten / "run.json").read_bytes()
    others, gone = forgotten.parent / "others.jsonl", forgotten.parent / "gone.txt"
    own = {"steps": 6, "until": 9.0, "overrides": [*BRIEF, "train.learning_rate=0.01"]}
    found = forget(learned, gone, forgotten, retrain=True, paraphrases=others, **own)
    assert (forgotten / "run.json").read_bytes() == before
    assert found == json.loads((forgotten / "forgetting/forgetting.json").read_text())
    with pytest.raises(RunError, match="other settings"):
        forget(learned, gone, forgotten, loss="gradient_ascent", **own)


# --- what it refuses ---


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["row-2", "nobody"], "1 rows that are not among the 28 rows that train: nobody"),
        (["dev-1"], "not among the 28 rows that train: dev-1"),
        ([], "holds no rows"),
        ([f"row-{n}" for n in range(28)], "names all 28 rows"),
    ],
)
def test_sets_that_cannot_be_forgotten(learned, tmp_path, ids, said):
    with pytest.raises(DataError, match=said):
        forget(learned, named(tmp_path / "gone.txt", ids), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_cannot_be_forgotten_and_retained(learned, tmp_path):
    gone = named(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"names 1 rows to forget: row-2"):
        forget(learned, gone, tmp_path / "out", retain=named(tmp_path / "kept.txt", ["row-2", "row-3"]))
    with pytest.raises(DataError, match="asks for 22 rows, and there are 21 others"):
        forget(learned, gone, tmp_path / "out", overrides=["forget.retain_rows=22"])


def test_retained_rows_are_those_of_the_file(learned, tmp_path):
    kept = named(tmp_path / "kept.txt", ["row-3", "row-4"])
    forget(learned, named(tmp_path / "gone.txt"), tmp_path / "out", retain=kept, steps=1, overrides=BRIEF)
    assert open_run(tmp_path / "out").record["data"]["rows"]["train"] == len(GONE) + 2


def test_runs_that_cannot_forget(learned, forgotten, tmp_path):
    gone = named(tmp_path / "gone.txt")
    with pytest.raises(RunError, match="forgets rows of"):
        forget(forgotten, gone, tmp_path / "out")
    half = tmp_path / "half"
    shutil.copytree(learned, half)
    record = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    with pytest.raises(RunError, match="is not finished"):
        forget(half, gone, tmp_path / "out")
    with pytest.raises(RunError, match="another method"):
        forget(learned, gone, tmp_path / "out", overrides=["method.lora_alpha=3", *BRIEF])
    with pytest.raises(InputError, match="steps is 0"):
        forget(learned, gone, tmp_path / "out", steps=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": "f"}, "does nothing while forget.run is null"),
        ({"run": "r"}, "forget.rows: is missing"),
        ({"run": "r", "rows": "f", "loss": "gradient_ascent", "beta": 0.5}, "it is for npo"),
        ({"run": "r", "rows": "f", "retain": "k", "retain_rows": 3}, "excludes forget.retain"),
        ({"run": "r", "rows": "f", "retain_rows": 0, "retain_weight": 2.0}, "does nothing with forget.retain_rows: 0"),
    ],
)
def test_settings_that_contradict(settings, said):
    with pytest.raises(ConfigError, match=said):
        load_config({"forget": settings, "data": {"train": {"path": "x.jsonl"}}})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"train": {"packing": True}}, "train.packing"),
        ({"train": {"early_stopping_patience": 1, "eval_steps": 10}}, "use forget.until"),
        ({"data": {"train": {"path": "x"}, "online_selection": {"by": "loss"}}}, "all of them are"),
        ({"task": {"type": "preference"}}, "rows have a likelihood"),
    ],
)
def test_settings_that_do_not_go_with_forgetting(other, said):
    with pytest.raises(ConfigError, match=said):
        load_config({"forget": {"run": "r", "rows": "f"}, "data": {"train": {"path": "x"}}, **other})


def test_ids_are_lines_of_a_text_file_or_example_ids(tmp_path):
    assert ids_in(named(tmp_path / "ids.txt", ["a", "b c"])) == {"a", "b c"}
    (tmp_path / "ids.jsonl").write_text('{"example_id": "a", "score": 1}\n')
    assert ids_in(tmp_path / "ids.jsonl") == {"a"}
    (tmp_path / "other.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match="example_id"):
        ids_in(tmp_path / "other.jsonl")
    with pytest.raises(DataError, match=r"forget\.rows .* is not a file"):
        ids_in(tmp_path / "none.txt", "forget.rows")
