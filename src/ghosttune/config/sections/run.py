"""`run`: what is kept and who hears of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import FILE_NAME, VARIABLE, Section, Text, setting


class AlertSettings(Section):
    on: list[Literal["nan", "plateau", "worse"]] | None = setting(
        None,
        why="a run that goes wrong at night is paid for until somebody looks",
        benefit="word comes when a loss is not a number, the dev loss stops falling, or the verdict is worse",
        cost="a wrong address or command costs ten seconds at each alert; training goes on",
    )
    """What word is sent of; null: of nothing. `nan`: a loss is not a number; `plateau`: `patience` evaluations in a row
    without a new best; `worse`: the verdict at the end."""
    webhook: Annotated[str, Field(pattern=VARIABLE)] | None = setting(
        None,
        why="chat programs and pagers take messages by HTTP, at addresses that are secrets",
        benefit="a message where people look; Slack, Mattermost and Discord show it as it is",
        cost="somebody else's server hears the run's name and losses",
    )
    """Name of the environment variable that holds the address (http or https) that gets a JSON object by POST: so the
    address, which is a password, stands in no file."""
    command: Text | None = setting(
        None,
        why="whatever else should happen: mail, a desktop notice, a job that is cancelled",
        benefit="any program of the machine hears of it",
        cost="runs on your machine, so only under --allow-code; ten seconds at most",
    )
    """Shell command that is run, the message in `GHOSTTUNE_MESSAGE`, beside `GHOSTTUNE_ALERT`, `_RUN` and `_STEP`."""
    patience: Annotated[int, Field(ge=1)] = setting(
        3,
        unit="evaluations",
        why="one evaluation without progress is chance",
        benefit="word comes once for each plateau",
        cost="so many evaluations are paid for before it comes",
    )
    """Evaluations in a row without a new best before `plateau` is told."""


class RunSettings(Section):
    name: Annotated[str, Field(pattern=FILE_NAME)] | None = setting(
        None,
        why="a folder that says what was tried is found again",
        benefit="names of your own sort and read as you think of them",
        cost="a name that is taken is refused: nothing is overwritten",
    )
    """Name of the run directory below `root`; unset: data, model, method and time."""
    root: Text = setting(
        "runs",
        why="runs of a project belong together",
        benefit="a larger or shared disk, without a change to anything else",
        cost="resuming and comparing need the path where the run lies",
    )
    """Folder that holds run directories."""
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow", "swanlab", "comet_ml"]] = setting(
        [],
        why="metrics.jsonl is the record; trackers subscribe",
        benefit="curves of many runs on one board, while they run",
        cost="their packages; for wandb, swanlab and comet_ml an account and the network",
    )
    """External trackers that receive the same numbers, by the names of Transformers' `report_to`; each is set up by its
    own environment variables."""
