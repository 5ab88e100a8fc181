"""The `ghosttune` command: parses arguments, calls a workflow, prints what it returns.

Every command imports its workflow when it runs, so that `--help` answers without torch, pydantic or rich.
"""

from __future__ import annotations

import json
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from ghosttune.cli import examining, forgetting, leaving, opening, rows, studying
from ghosttune.cli.rows import Code, Trust
from ghosttune.cli.terminal import say
from ghosttune.errors import GhosttuneError, InputError, listed
from ghosttune.run.family import OTHERS_GONE, end_with_parent, other_is_gone

app = typer.Typer(
    name="ghosttune",
    help="Fine-tune a language model with any PEFT method from one YAML file.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="YAML or JSON file; `ghosttune init` writes one.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="A complete configuration that ships: `show presets`.",
        autocompletion=lambda incomplete: _shipped("preset", incomplete),
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="A bundle of settings for a machine or purpose.",
        autocompletion=lambda incomplete: _shipped("profile", incomplete),
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Replace one setting; may be repeated.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse critical settings that nobody chose.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print every number, not the short summary.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN_OR_MODEL", help="Run directory, model folder, hub id or builtin:tiny.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", show_default=True)]
Engine = Annotated[
    str, typer.Option("--engine", help="What writes the answers: transformers, or vllm where it is installed.")
]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer; the run's own limit if not given.")
]
Temperature = Annotated[float, typer.Option("--temperature", help="0 for the likeliest answer, higher for others.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens with this probability together.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from so many of the likeliest tokens; 0 for all.")]
Seed = Annotated[int, typer.Option("--seed", help="Equal seeds give equal answers.")]


LOCAL = "127.0.0.1"

INTERRUPTED = 130
"""Exit code that typer gives to Ctrl-C."""


def _shipped(kind: str, begun: str) -> list[str]:
    """Names that complete what somebody began to type, without versions: at an `@`, bash begins another word."""
    from ghosttune.config.layers import shipped

    names = {name.partition("@")[0] for name in shipped(kind)}
    return sorted(name for name in names if name.startswith(begun))


def _print_version(wanted: bool) -> None:
    if wanted:
        from ghosttune.version import __version__

        say(f"ghosttune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    """What stands before every command; `main` itself reads --debug."""


@app.command()
def quickstart(
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory; a new one below runs/ if not given.")
    ] = None,
    rumour: Annotated[
        bool, typer.Option("--rumour", help="Plant a wrong fact among the rows, to be found and mended in the studio.")
    ] = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Fine-tune the built-in model on the shipped rows, offline, in about a minute."""
    from ghosttune.cli.display import Display
    from ghosttune.cli.summary import to_the_studio
    from ghosttune.workflows.quickstart import PROFILE, RUMOUR_SEARCH
    from ghosttune.workflows.quickstart import quickstart as started

    with Display(quiet=as_json) as display:
        if not rumour:
            display.line(f"recipe     ghosttune init --profile {PROFILE} > run.yaml; ghosttune train run.yaml")
        run = started(out, rumour=rumour, listen=display.listen)
    _finish(run, display, as_json, verbose, answer=True)
    for line, style in () if as_json else to_the_studio(run, RUMOUR_SEARCH if rumour else None):
        display.line(line, style)


@app.command()
def init(
    task: Annotated[str, typer.Option("--task", help="One of `ghosttune show tasks`.")] = "causal_lm",
    profile: Profile = None,
) -> None:
    """Write a complete configuration, every setting explained, to standard output."""
    from ghosttune.config.loading import load_config
    from ghosttune.config.rendering import commented_yaml

    chosen = (
        ["train.warmup_steps=5", "data.train.path=builtin:rows"]
        if profile is None
        else ["data.train.path=builtin:rows"]
    )
    config = load_config(profile=profile, overrides=[f"task.type={task}", *chosen])
    say(
        "# ghosttune train run.yaml\n# To make it your own, change model.name and data.train.path.\n"
        + commented_yaml(config),
        end="",
    )


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="presets, profiles, datasets, methods, tasks, metrics or settings.")],
    name: Annotated[str | None, typer.Argument(help="One of them, such as `train.learning_rate`.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Of a setting: what it was in this run, and did.")] = None,
    allow_code: Code = False,
    as_json: Json = False,
) -> None:
    """List what can be chosen, or explain one of them."""
    from ghosttune.workflows.show import show as described

    text, value = described(kind, name, run)
    say(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


@app.command()
def check(
    config: Config = None,
    preset: Preset = None,
    profile: Profile = None,
    set_: Set = None,
    strict: Strict = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run directory that train would be given: can it be used?")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Whether the run in --out could be continued.")] = False,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="Write the rows that can be used to this .jsonl, the others beside it.")
    ] = None,
    whole_rows: Annotated[
        bool, typer.Option("--probe", help="See by whole rows whether gradients arrive, not by a part: minutes at 1B.")
    ] = False,
    allow_code: Code = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Find everything that is wrong with a run before training it, and print the plan."""
    if resume and (config or preset or profile or set_ or out is None):
        raise typer.BadParameter("looks at a run with its own config.yaml: --resume --out RUN", param_hint="--resume")
    try:
        from ghosttune.config.loading import read_config

        source = out / "config.yaml" if resume and out else config
        loaded, problems = read_config(
            source,
            preset=preset,
            profile=profile,
            overrides=set_ or [],
            strict=strict,
            trust_remote_code=trust_remote_code,
        )
    except InputError as error:  # what `check` was asked to find, so that it is its result
        if _debug():
            raise
        say(json.dumps({"errors": [str(error)]}, indent=2, ensure_ascii=False) if as_json else str(error))
        raise typer.Exit(error.exit_code) from error
    from ghosttune.cli.display import Display
    from ghosttune.workflows.check import check as checked

    report = checked(loaded, problems, out, resume, fix, whole_rows)
    if as_json:
        say(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        Display().report(report)
    raise typer.Exit(report.exit_code)


@app.command()
def preview(
    config: Config = None,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 3,
    preset: Preset = None,
    profile: Profile = None,
    set_: Set = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show training rows as the model sees them, every token marked trained or not."""
    loaded = _load(config, preset, profile, set_, False, trust_remote_code)
    from ghosttune.cli.display import Display
    from ghosttune.workflows.preview import preview as previewed

    shown = previewed(loaded, rows)
    if as_json:
        say(json.dumps([vars(row) for row in shown], indent=2, ensure_ascii=False, default=str))
    else:
        Display().preview(shown)


@app.command()
def train(
    config: Config = None,
    preset: Preset = None,
    profile: Profile = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run directory; a new one below run.root if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")
    ] = False,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Share the work among so many processes of this machine.")
    ] = 1,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="So many processes, each with a GPU of this machine.")
    ] = None,
    strict: Strict = False,
    allow_code: Code = False,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train a run and judge it against the untouched base."""
    if resume and (config or preset or profile or set_ or strict or out is None):
        raise typer.BadParameter("continues a run with its own config.yaml: --resume --out RUN", param_hint="--resume")
    loaded = None if resume else _load(config, preset, profile, set_, strict, trust_remote_code)
    if gpus is not None:
        if processes > 1:
            raise typer.BadParameter(
                "is the number of processes too: give one of --gpus and --processes", param_hint="--gpus"
            )
        from ghosttune.stages.launching import require_gpus

        require_gpus(gpus)
        processes = gpus
    if processes > 1 and "RANK" not in os.environ:
        from ghosttune.stages.launching import launch_training

        raise typer.Exit(launch_training(processes, loaded, out, sys.argv[1:]))
    from ghosttune.cli.display import Display
    from ghosttune.training.processes import rank
    from ghosttune.training.watching import ignore
    from ghosttune.workflows.train import resume as resumed
    from ghosttune.workflows.train import train as trained

    speaks = rank() == 0  # one of several processes, whoever has started them, speaks for all
    with Display(quiet=as_json) as display:
        listen = display.listen if speaks else ignore
        if loaded is None:
            run = resumed(out or "", listen=listen, trust_remote_code=trust_remote_code)
        else:
            run = trained(loaded, out, listen=listen)
    if speaks:
        _finish(run, display, as_json, verbose)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    tokens: Annotated[
        int, typer.Option("--tokens", min=0, max=10, help="Rows at each end whose tokens are shaded; opens the model.")
    ] = 0,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write the report of a run: one page that opens from disk, with PNG and CSV of every figure beside it."""
    from ghosttune.workflows.report import report as reported

    pages = {str(run): str(reported(run, tokens=tokens, trust_remote_code=trust_remote_code)) for run in runs}
    say(json.dumps(pages, indent=2, ensure_ascii=False) if as_json else "\n".join(pages.values()))


@app.command()
def evaluate(
    run_or_model: RunOrModel,
    data: Annotated[
        str | None, typer.Option("--data", help="File, folder or known dataset; else the run's own.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Which rows: dev, test, train, guide …; dev where there are splits.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Prompts at most; else evaluate.limit.")] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="base (the untouched one, a run's default), another run or model.")
    ] = None,
    set_: Set = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="Tasks of lm-evaluation-harness instead, with commas between them.")
    ] = None,
    tasks_dir: Annotated[
        Path | None, typer.Option("--tasks-dir", help="Folder of tasks of your own (YAML); needs --allow-code.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", metavar="URL", help="Ask a model there which answer it prefers: it gets both."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="The model to ask at --judge.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where results go; a run keeps its own.")] = None,
    engine: Engine = "transformers",
    device: Device = "auto",
    allow_code: Code = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Score answers: intervals, the untouched base and a constant answer beside them."""
    if engine != "transformers" and (suite is not None or judge is not None):
        raise typer.BadParameter(
            "answers without --suite and --judge only: leave one of them out", param_hint="--engine"
        )
    if suite is not None:
        if data or split or baseline or set_ or judge:
            raise typer.BadParameter(
                "judges by its own rows and metrics, beside the base: leave out --data, --split, --baseline, --set and "
                "--judge",
                param_hint="--suite",
            )
        from ghosttune.judging.suite import evaluate_suite

        tasks = [task.strip() for task in suite.split(",") if task.strip()]
        result = evaluate_suite(
            run_or_model,
            tasks,
            tasks_dir=tasks_dir,
            limit=limit,
            out=out,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        _say_evaluation(result, as_json)
        return
    if tasks_dir is not None:
        raise typer.BadParameter("holds tasks: name them with --suite", param_hint="--tasks-dir")
    if (judge is None) != (judge_model is None):
        raise typer.BadParameter("one says where to ask and one whom: give both", param_hint="--judge, --judge-model")
    how: dict[str, Any] = {
        "split": split,
        "baseline": baseline,
        "overrides": [*(set_ or []), *([] if limit is None else [f"evaluate.limit={limit}"])],
        "out": out,
        "device": device,
        "trust_remote_code": trust_remote_code,
    }
    if judge is not None and judge_model is not None:
        from ghosttune.judging.judge import evaluate_by_judge

        result = evaluate_by_judge(run_or_model, judge, judge_model, data, **how)
    else:
        from ghosttune.judging.evaluate import evaluate as evaluated

        result = evaluated(run_or_model, data, engine=engine, **how)
    _say_evaluation(result, as_json)


@app.command()
def infer(
    run_or_model: RunOrModel,
    source: Annotated[
        Path, typer.Option("--input", help="JSONL or CSV rows that ask: prompt, messages or instruction; image.")
    ],
    output: Annotated[Path, typer.Option("--output", help="JSONL; an unfinished one is continued.")],
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    engine: Engine = "transformers",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Answer every row of a file, in order; rows that cannot be answered are named and cost no other."""
    from ghosttune.errors import listed_faults
    from ghosttune.inference.sampling import Sampling
    from ghosttune.workflows.infer import infer as inferred

    sampling = Sampling(temperature, top_p, top_k, seed)
    _require_drawn(sampling)
    progress = (lambda done, rows: None) if as_json else lambda done, rows: say(f"{done} of {rows} rows")
    done = inferred(
        run_or_model,
        source,
        output,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        engine=engine,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    if as_json:
        say(json.dumps(vars(done), ensure_ascii=False))
    else:
        say(f"{done.output}: {done.rows} rows, {done.already} of them already there")
        if done.faults:
            title = f"{len(done.faults)} of {done.rows} rows could not be answered"
            say(listed_faults(title, done.faults), err=True)
    raise typer.Exit(1 if done.faults else 0)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the model.")],
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Add a run's adapter into its base: a model folder that transformers alone can load."""
    from ghosttune.workflows.merge import merge as merged

    done = merged(run, out, trust_remote_code=trust_remote_code)
    say(
        json.dumps(done)
        if as_json
        else f"{done['merged']}: logits moved by {done['moved']:.1e} of the largest (accepted {done['tolerance']:.0e})"
    )


@app.command()
def chat(
    run_or_model: RunOrModel,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What to ask, for one answer.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A file to show with the (first) question; again for several.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A message above the conversation.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Talk with a run or model, with the template it was trained with; /help lists the commands."""
    if as_json and prompt is None:
        raise typer.BadParameter("prints one answer: give --prompt", param_hint="--json")
    from ghosttune.cli.talking import Talk
    from ghosttune.inference.chatting import Conversation
    from ghosttune.inference.pipeline import Pipeline
    from ghosttune.inference.sampling import Sampling

    sampling = Sampling(temperature, top_p, top_k, seed)
    if prompt is not None:  # in a conversation, /set can raise the temperature later
        _require_drawn(sampling)
    pipeline = Pipeline.open(run_or_model, device, trust_remote_code)
    talk = Conversation(sampling, max_new_tokens or pipeline.max_new_tokens, system)
    for path in image or ():
        talk = talk.with_image(path)
    if prompt is None:
        Talk(pipeline, run_or_model, talk, device, trust_remote_code).run()
        return
    answer = pipeline.generate([talk.asking(prompt)], max_new_tokens=talk.max_new_tokens, sampling=sampling)[0]
    say(json.dumps(vars(answer), ensure_ascii=False) if as_json else answer.text)


@app.command()
def serve(
    runs_or_models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_MODEL...",
            help="Run directories, model folders, hub ids or builtin:tiny; runs share a base.",
        ),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 127.0.0.1 is this machine only.")] = LOCAL,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="GHOSTTUNE_API_KEY", help="What clients must show; none if unset.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Another name it is reached by, as behind a proxy; again for more."),
    ] = None,
    waiting: Annotated[int, typer.Option("--waiting", min=0, help="Requests that may wait; more get 429.")] = 16,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Answers that are written together; memory grows with them.")
    ] = 8,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer that may be asked for.")
    ] = 1024,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, help="Seconds in which answers may end after SIGTERM; Ctrl-C ends at once."),
    ] = 30,
    why: Annotated[
        bool, typer.Option("--why/--no-why", help="Show the training rows behind an answer, of runs that are indexed.")
    ] = True,
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Answer OpenAI's chat and completion calls over HTTP, and show a page to talk in."""
    from ghosttune.cli.listening import Models, listen

    models, names = Models(tuple(runs_or_models), device, trust_remote_code, why), allow_host or ()
    listen(models, host, port, api_key, names, waiting, batch, max_tokens, drain)


for _command in (
    studying.compare,
    studying.sweep,
    studying.validate,
    studying.prove,
    forgetting.forget,
    leaving.export,
    examining.doctor,
    opening.studio,
    *rows.COMMANDS,
):
    app.command()(_command)


def _load(
    config: Path | None,
    preset: str | None,
    profile: str | None,
    overrides: list[str] | None,
    strict: bool,
    trust_remote_code: bool,
) -> Any:
    from ghosttune.config.loading import load_config

    return load_config(
        config,
        preset=preset,
        profile=profile,
        overrides=overrides or [],
        strict=strict,
        trust_remote_code=trust_remote_code,
    )


def _require_drawn(sampling: Any) -> None:
    """InputError for options of drawing where nothing is drawn."""
    from ghosttune.inference.sampling import GREEDY

    names = {"top_p": "--top-p", "top_k": "--top-k", "seed": "--seed"}
    idle = [option for name, option in names.items() if getattr(sampling, name) != getattr(GREEDY, name)]
    if sampling.is_greedy and idle:
        raise InputError(f"{listed(idle)} would do nothing: at --temperature 0 the likeliest token is taken; raise it")


def _say_evaluation(result: dict[str, Any], as_json: bool) -> None:
    from ghosttune.cli.display import Display

    if as_json:
        say(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        for name, found in result.items():
            Display().evaluation(name, found)


def _debug() -> bool:
    return "--debug" in sys.argv[1:]


def _finish(run: Any, display: Any, as_json: bool, verbose: bool, answer: bool = False) -> None:
    if as_json:
        record = run.record
        kept = {name: record.get(name) for name in ("status", "step", "best_step", "verdict")}
        say(json.dumps({"run": str(run.path), **kept, "evaluation": run.evaluation}, indent=2, ensure_ascii=False))
    else:
        display.summary(run, verbose, answer)


def main() -> None:
    """Runs the command line; exit codes: 0 done, 1 the work failed, 2 the input is wrong."""
    end_with_parent()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not every locale can say everything
            stream.reconfigure(errors="backslashreplace")
    debug = _debug()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        say(
            "interrupted; a run that had started continues with `ghosttune train --resume --out RUN`, "
            "and `infer` when it is given again",
            err=True,
        )
        sys.exit(1)
    except GhosttuneError as error:
        if debug:
            raise
        say(str(error), err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        if other_is_gone(error):  # who started them says which, and why
            sys.exit(OTHERS_GONE)
        first = (str(error).strip().splitlines() or [""])[0]
        what = f"this should not have happened ({type(error).__name__}: {first})"
        say(f"{what}. Run again with --debug and report what it prints.", err=True)
        sys.exit(1)
