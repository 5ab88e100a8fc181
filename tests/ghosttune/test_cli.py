"""The program as a person or a script meets it: exit codes, messages, times; real processes where they matter."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ghosttune.cli.main import main
from ghosttune.config.rendering import plain_yaml
from ghosttune.version import __version__
from processes import limited

PROGRAM = [sys.executable, "-m", "ghosttune"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def process(*arguments: object, **options) -> subprocess.CompletedProcess:
    """The program as a process of its own."""
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=1500, **options)


def ghosttune(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The program's own `main`, in this process: the same code without three seconds of imports."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["ghosttune", *map(str, arguments)]
    try:
        with contextlib.chdir(cwd or "."), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code: object = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(arguments, int(str(code)), out.getvalue(), err.getvalue())


@pytest.fixture
def config_file(make_config, tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(plain_yaml(make_config()))
    return path


def refused(*arguments: object, saying: str, code: int = 2, cwd: Path | None = None) -> str:
    """The message of a command that must fail without a traceback."""
    result = ghosttune(*arguments, cwd=cwd)
    assert result.returncode == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr and "Error(" not in result.stderr
    assert re.search(saying, result.stderr), result.stderr
    return result.stderr


def test_train_from_the_command_line(config_file, tmp_path):
    result = process("train", config_file, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "step 0: dev loss" in result.stdout and "untouched base" in result.stdout
    assert "\x1b" not in result.stdout, "no escape codes where there is no terminal"
    assert result.stderr == ""
    answer = ghosttune("chat", tmp_path / "run", "--prompt", "Say red number 3", "--json")
    assert set(json.loads(answer.stdout)) == {"text", "tokens", "stopped"}


def test_json_goes_to_standard_output_and_nothing_else_does(config_file, tmp_path):
    result = ghosttune("train", config_file, "--out", tmp_path / "run", "--json")
    value = json.loads(result.stdout)
    assert value["status"] == "finished" and value["verdict"]["change"]["n"] == 3
    assert "dev loss" in result.stderr


def test_resume_of_a_finished_run_says_so(config_file, tmp_path):
    ghosttune("train", config_file, "--out", tmp_path / "run")
    result = ghosttune("train", "--resume", "--out", tmp_path / "run")
    assert result.returncode == 0 and "finished already" in result.stdout


def test_init_trains_as_it_stands(tmp_path):
    written = ghosttune("init")
    assert written.returncode == 0 and written.stderr == ""
    assert yaml.safe_load(written.stdout)["train"]["warmup_steps"] == 5
    (tmp_path / "run.yaml").write_text(written.stdout)
    shorter = ["--set", "train.max_steps=10", "--set", "evaluate.limit=1", "--set", "data.dev.limit=4"]
    result = ghosttune("train", "run.yaml", *shorter, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_check_finds_everything_and_prints_the_plan(config_file, rows_file, tmp_path):
    enough = ["--set", "data.dev.fraction=0.3", "--set", "evaluate.max_new_tokens=16"]
    good = ghosttune("check", config_file, *enough)
    assert good.returncode == 0, good.stdout
    assert "trainable_parameters" in good.stdout and "nothing to complain about" in good.stdout
    bad = ghosttune(
        "check", config_file, "--set", "method.target_modules=[q_prj]", "--set", "data.max_length=8", "--json"
    )
    report = json.loads(bad.stdout)
    assert bad.returncode == 2 and report["plan"] == {}
    assert "do not fit into data.max_length 8; answers are never cut" in report["errors"][0]
    assert "did you mean q_proj?" in report["errors"][-1]
    rows_file.write_text(rows_file.read_text() * 2)
    twice = ghosttune("check", config_file, *enough)
    assert twice.returncode == 1 and "repeat another row" in twice.stdout


def test_what_check_finds_goes_to_standard_output(config_file, rows_file, tmp_path):
    """Settings, rows and files alike: exit 2 for what training would refuse."""
    rows = rows_file.read_text()
    wrong = [
        (["--set", "train.max_stepz=3"], rows, "no such setting; did you mean max_steps"),
        (["--set", f"data.train.path={tmp_path / 'none.jsonl'}"], rows, "does not exist"),
        ([], rows + '{"prompt": "a", "completion": null}\n', "completion must be text, is null"),
    ]
    for arguments, written, message in wrong:
        rows_file.write_text(written)
        printed = ghosttune("check", config_file, *arguments)
        assert printed.returncode == 2 and message in printed.stdout and printed.stderr == ""
        as_json = ghosttune("check", config_file, *arguments, "--json")
        assert as_json.returncode == 2 and as_json.stderr == ""
        (error,) = json.loads(as_json.stdout)["errors"]
        assert message in error
    absent = ghosttune("check", tmp_path / "none.yaml")
    assert absent.returncode == 2 and "none.yaml does not exist" in absent.stdout


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_misspelt_target_module_is_shown_where_it_stands(config_file, command):
    text = config_file.read_text()
    assert "target_modules: all_linear" in text
    config_file.write_text(text.replace("target_modules: all_linear", "target_modules: [q_prj]"))
    line = 1 + text[: text.index("target_modules:")].count("\n")
    result = ghosttune(command, config_file)
    assert result.returncode == 2
    assert re.search(rf"did you mean q_proj\?.* \[.*run\.yaml:{line}\]", result.stdout + result.stderr)


def test_lines_of_a_conversation_are_told_how_to_be_rows(config_file, tmp_path):
    talk = tmp_path / "talk.txt"
    talk.write_text("User: Good morning\nAssistant: Good morning!\n" * 20)
    arguments = ["train", config_file, "--set", f"data.train.path={talk}"]
    message = refused(*arguments, saying=r"data\.loss_on: must be all for rows of plain text")
    assert "each line of a .txt file is a row of its own" in message
    line = message.partition("in a .jsonl file a line such as ")[2].splitlines()[0].partition(" [")[0]
    assert json.loads(line) == {"text": "User: …\nAssistant: …"}
    talk.write_text("\n".join(f"Morning number {number}" for number in range(20)))
    assert "Assistant:" not in refused(*arguments, saying="must be all for rows of plain text")


def test_version():
    result = ghosttune("--version")
    assert result.returncode == 0 and result.stdout == f"ghosttune {__version__}\n"


def test_help_names_the_options_of_every_command():
    said = " ".join(ghosttune("--help").stdout.split())
    assert "--version" in said and "--debug Show the traceback of an error" in said
    assert "Fine-tune a language model" in said


def test_a_dataset_is_described_without_python(tmp_path):
    assert re.search(r"^columns +mr, ref$", ghosttune("show", "datasets", "e2e_nlg").stdout, re.MULTILINE)
    assert json.loads(ghosttune("show", "datasets", "e2e_nlg", "--json").stdout)["columns"] == ["mr", "ref"]


def test_preview_marks_the_trained_tokens(config_file):
    result = ghosttune("preview", config_file, "-n", "1")
    assert result.returncode == 0 and "<eos>⟧" in result.stdout
    row = json.loads(ghosttune("preview", config_file, "-n", "1", "--json").stdout)[0]
    assert [flag for _, flag in row["tokens"]] == sorted(flag for _, flag in row["tokens"])
    assert "".join(text for text, flag in row["tokens"] if flag).endswith("<eos>")


@pytest.mark.parametrize("kind", ["presets", "profiles", "datasets", "methods", "tasks", "strategies", "settings"])
def test_show_lists_and_explains(kind):
    names = json.loads(ghosttune("show", kind, "--json").stdout)
    assert names and all(names.values())
    one = ghosttune("show", kind, next(iter(names)))
    assert one.returncode == 0 and len(one.stdout) > 20


def test_bad_input(config_file, rows_file, tmp_path):
    out = ["--out", tmp_path / "never"]
    refused(
        "train",
        config_file,
        "--set",
        "train.max_stepz=3",
        *out,
        saying=r"train\.max_stepz: no such setting; did you mean max_steps\?",
    )
    refused(
        "train", config_file, "--set", "method.target_modules=[q_prj]", *out, saying=r"q_prj.*did you mean q_proj\?"
    )
    refused("train", tmp_path / "nothing.yaml", *out, saying=r"nothing\.yaml does not exist")
    refused(
        "train",
        config_file,
        "--set",
        "data.train.path=rows.jsnol",
        *out,
        saying=r"rows\.jsnol does not exist; .*rows\.jsonl",
        cwd=tmp_path,
    )
    refused("train", config_file, "--set", "model.name=/no/such/model", *out, saying=r"/no/such/model is not a folder")
    refused(
        "train",
        config_file,
        "--set",
        "model.name=no-such/hub-model",
        *out,
        saying=r"no-such/hub-model is not on this machine",
    )
    refused("train", config_file, "--set", "model.device=cuda:7", *out, saying=r"cuda:7 was asked for and torch sees")
    refused("train", "--preset", "e2e_atention", *out, saying=r"did you mean e2e_attention\?")
    refused("train", "--resume", saying="--resume --out RUN")
    refused("show", "setings", saying=r"did you mean settings\?")
    refused("chat", tmp_path, "--prompt", "x", saying="neither a run")
    refused("train", config_file, "--bogus", saying="No such option")
    assert not (tmp_path / "never").exists(), "nothing was written"


def test_bad_rows(config_file, rows_file, tmp_path):
    out = ["--out", tmp_path / "never"]
    good = rows_file.read_text()
    rows_file.write_text(good + '{"prompt": "a", "completion": \n')
    refused("train", config_file, *out, saying=r"rows\.jsonl:31: not valid JSON")
    rows_file.write_text(good + '{"prompt": "a", "completion": "  "}\n')
    refused("train", config_file, *out, saying=r"rows\.jsonl:31: completion is empty")
    rows_file.write_text(good + json.dumps({"prompt": "a " * 600, "completion": "b"}) + "\n")
    refused(
        "train",
        config_file,
        *out,
        "--set",
        "data.max_length=128",
        saying=r"1 of 2\d rows .* longer than data\.max_length 128|1 of .* rows",
    )
    rows_file.write_text("")
    refused("train", config_file, *out, saying=r"holds no rows")
    assert not (tmp_path / "never").exists(), "nothing was written"


def test_a_used_or_unwritable_folder(config_file, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    refused("train", config_file, "--out", used, saying="not empty and holds no run")
    (tmp_path / "file").write_text("x")
    refused("train", config_file, "--out", tmp_path / "file", saying="is a file")
    refused("train", config_file, "--out", "/proc/ghosttune-run", saying="cannot be written")


def test_ctrl_c_saves_and_resume_continues(make_config, tmp_path):
    config_file = tmp_path / "run.yaml"
    config_file.write_text(
        plain_yaml(make_config(train__max_steps=2000, train__eval_steps=1000, train__save_steps=1000))
    )
    out = tmp_path / "run"
    command = [*PROGRAM, "train", str(config_file), "--out", str(out)]
    with limited(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    ) as process:
        deadline = time.monotonic() + 300
        while not (out / "metrics.jsonl").is_file():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1 and "--resume --out" in stderr and "Traceback" not in stderr
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "stopped" and (out / "checkpoints" / f"step-{record['step']}").is_dir()
    shown = ghosttune("chat", out, "--prompt", "x")
    assert shown.returncode == 2 and "--resume" in shown.stderr


def test_a_terminal_gets_its_cursor_back(config_file, tmp_path):
    master, terminal = pty.openpty()
    late = (
        "import ghosttune.workflows.train as w, ghosttune.errors as e\n"
        "def fail(*_): raise e.GhosttuneError('no more')\n"
        "w._run_stages = fail\n"
    )
    code = f"{late}from ghosttune.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", str(config_file), "--out", str(tmp_path / "run")]
    environment = {**ENVIRONMENT, "TERM": "xterm"}
    with limited(subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(master, 65536):
                shown += part
        process.wait(timeout=300)
    os.close(master)
    assert process.returncode == 1
    hidden, back = shown.rfind(b"\x1b[?25l"), shown.rfind(b"\x1b[?25h")
    assert 0 < hidden < back < shown.rfind(b"no more"), "and the message has a line of its own"


def test_any_locale_can_be_printed_to(config_file):
    environment = {**ENVIRONMENT, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [*PROGRAM, "preview", str(config_file), "--set", "model.name=builtin:tiny"]  # answers without torch
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert result.returncode == 0 and "\\u27e6" in result.stdout, result.stderr


def seconds_of(*arguments: str) -> float:
    """CPU seconds of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "arguments, share",
    [
        (["--help"], 0.35),
        (["train", "--help"], 0.7),
        (["show", "settings"], 0.7),
        (["show", "methods"], 0.7),
        (["show", "datasets", "e2e_nlg"], 0.7),
        (["train", "--set", "train.max_stepz=1"], 0.7),
    ],
)
def test_answers_quickly(arguments, share, torch_seconds):
    """In shares of what importing torch takes on the same machine; other work there only adds: one of five will do."""
    assert any(seconds_of(*arguments) < share * torch_seconds for _ in range(5))


@pytest.mark.parametrize(
    "arguments, absent",
    [
        (["--help"], ["torch", "transformers", "peft", "pydantic", "rich"]),
        (["train", "--help"], ["torch", "transformers", "peft", "rich"]),
        (["show", "settings"], ["torch", "transformers", "peft"]),
        (["show", "datasets"], ["torch", "transformers", "peft", "numpy", "datasets"]),
        (["train", "--set", "train.max_stepz=1"], ["torch", "transformers", "peft"]),
        (["init"], ["torch", "transformers", "peft"]),
    ],
)
def test_imports_only_what_it_needs(arguments, absent):
    code = f"""
import sys
sys.argv = ["ghosttune", *{arguments!r}]
from ghosttune.cli.main import main
try:
    main()
except SystemExit:
    pass
print("LOADED", *[name for name in {absent!r} if name in sys.modules], file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=1500)
    assert result.stderr.strip().splitlines()[-1] == "LOADED"


def test_an_unexpected_error_is_one_line_and_debug_shows_it(tmp_path):
    broken = "import ghosttune.workflows.show as s; s.show = lambda *a: 1/0"
    code = f"{broken}; from ghosttune.cli.main import main; main()"
    command = [sys.executable, "-c", code, "show", "methods"]
    quiet = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert quiet.returncode == 1 and "ZeroDivisionError" in quiet.stderr and "Traceback" not in quiet.stderr
    loud = subprocess.run([*command, "--debug"], capture_output=True, text=True, timeout=1500)
    assert loud.returncode == 1 and "Traceback" in loud.stderr
