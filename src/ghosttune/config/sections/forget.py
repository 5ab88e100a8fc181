"""`forget`: how rows are unlearned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import Section, Text, setting


class ForgetSettings(Section):
    run: Text | None = setting(
        None,
        why="what single rows taught may have to go: a person's data, a secret, an answer that was wrong",
        benefit="a fraction of the time of training anew without them",
        cost="only training without the rows is sure: beside it this is judged (`ghosttune forget --retrain`)",
    )
    """Start from the best adapter of this run, and make it forget some of its rows; null for off."""
    rows: Text | None = setting(
        None,
        why="what is to be forgotten is rows of the run that taught it",
        benefit="the same file as for `data.train.keep`, such as `ghosttune select` or `attribute` helps to make",
        cost="what rows that stay say of the same thing stays too: name those as well",
    )
    """File of the ids of the rows to forget: one in each line of a .txt file, else the `example_id` of each row."""
    loss: Literal["npo", "gradient_ascent"] = setting(
        "npo",
        why="a loss that is only raised knows no end, and takes the rest of the model with it",
        benefit="`npo` pushes less the further a row is forgotten; `gradient_ascent` is what it is compared with",
        cost="npo reads every row that is forgotten once more, before the first update",
    )
    """What the rows to forget are trained with: negative preference optimization (Zhang et al. 2024, arXiv 2404.05868),
    whose reference is the adapter at the start, or the loss of training with its sign turned."""
    beta: Annotated[float, Field(gt=0)] = setting(
        0.1,
        unit="per nat of a row",
        why="says how far a row is forgotten before it is left alone",
        benefit="higher stops sooner, lower comes near gradient ascent",
        cost="too high, and rows of many tokens hardly move",
    )
    """npo: inverse temperature."""
    retain: Text | None = setting(
        None,
        why="which rows must not suffer may be known, such as those most like the forgotten ones",
        benefit="exactly these are held on to",
        cost="what none of them asks for may go unnoticed",
    )
    """File of the ids of rows to hold on to, in place of a sample; read as `rows` is."""
    retain_rows: Annotated[int, Field(ge=0)] | None = setting(
        None,
        unit="rows",
        why="what makes rows forgotten also moves what all others use",
        benefit="more rows hold on to more of what was learned",
        cost="fewer of the rows of each update are forgotten ones; 0 holds on to nothing",
    )
    """Train a sample of so many of the run's other rows with their own loss; unset: four for each forgotten row."""
    retain_weight: Annotated[float, Field(gt=0)] = setting(
        4.0,
        why="forgetting and holding on pull at the same weights",
        benefit="higher keeps the other rows nearer to where they were",
        cost="forgetting takes more updates",
    )
    """Weight of the loss of retained rows; that of forgotten ones has 1."""
    until: Annotated[float, Field(gt=0)] | None = setting(
        None,
        unit="nats per target",
        why="rows made less likely than to a model that never saw them are told apart by just that",
        benefit="stops at the loss of a model that never saw them, where one is known",
        cost="looked at every `train.eval_steps` updates: one forward pass of the forgotten rows",
    )
    """End the run at the first evaluation at which the mean loss of the forgotten rows is as high."""
