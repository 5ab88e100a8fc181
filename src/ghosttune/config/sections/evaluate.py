"""`evaluate`: how answers are judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import Count, Names, Section, Text, setting


class EvaluateSettings(Section):
    metrics: Literal["auto"] | Names = setting(
        "auto",
        why="a lower loss is not yet a better answer",
        benefit="each number comes with n, an interval and its baselines",
        cost="most are of generated answers, which take time",
    )
    """Metrics of the answers (`ghosttune show metrics`), or `auto`: those of the known dataset, else `exact_match` and
    `chrf`. `stopped` always stands beside them. `path.py:function` is a function of your own of an answer (`output`,
    `references`, `metadata`: any of them) that returns a number, more being better, or whether the answer is right; it
    runs under `--allow-code` only."""
    limit: Annotated[int, Field(ge=0)] | None = setting(
        100,
        unit="prompts",
        why="generating an answer can take longer than training on it",
        benefit="more prompts make narrower intervals",
        cost="one generated answer per prompt, twice",
    )
    """Dev prompts answered at the end by the base and by the adapter; null for all, 0 for none. Rows with the same
    prompt are one, with all their references."""
    max_new_tokens: Count = setting(
        128,
        unit="tokens",
        why="a model that never stops has to be stopped",
        benefit="an answer that needs more tokens is judged whole",
        cost="base answers that do not stop take all of it, in every batch",
    )
    """Longest generated answer."""
    samples: Annotated[int, Field(ge=0)] = setting(
        0,
        unit="prompts",
        why="a loss does not say what the model writes by now",
        benefit="the report shows how the answers to these prompts changed, from the untouched base on",
        cost="so many answers are generated at every evaluation",
    )
    """Answer so many dev prompts, always the same, at every evaluation of a run; 0 for none."""
    shots: Annotated[int, Field(ge=0)] = setting(
        0,
        unit="rows",
        why="a few examples in the prompt can do what tuning does, without tuning",
        benefit="one more baseline beside the others: the untouched base that has seen so many answered training rows",
        cost="one more answer per prompt, behind a prompt that is as many times longer",
    )
    """Training rows that stand answered before each prompt of the few-shot baseline; 0 for no such baseline."""
    synonyms: Text | None = setting(
        None,
        why="METEOR without them compares words and stems only",
        benefit="an answer in other words for the same thing is not counted as wrong",
        cost="a file of your own: none is shipped, and figures with and without do not compare",
    )
    """Folder with `*synonyms.tsv` (lines of synset, tab, words) for `meteor`."""
    tables: Text | None = setting(
        None,
        why="two queries can be written differently and say the same",
        benefit="`sql_execution` compares what queries return",
        cost="the tables have to be there, and every query is run",
    )
    """File or folder of `*.tables.jsonl` in WikiSQL's form, on which `sql_execution` runs queries."""
    general_text: Text | None = setting(
        None,
        why="tuning on one task can cost what the model knew",
        benefit="shows what tuning made the model forget",
        cost="two forward passes over 16,384 tokens",
    )
    """File of general text (rows of `text`), whose loss is compared before and after."""


EVALUATION_FILES = ("evaluate.synonyms", "evaluate.tables", "evaluate.general_text")
"""Settings that name files which only an evaluation reads."""
