"""The eleven proofs, and how they are tried one after another."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ghosttune.errors import InputError, listed
from ghosttune.proving.findings import Bench, Finding, Proof, Proved
from ghosttune.registry import METHODS
from ghosttune.run.scratch import scratch_folder


def _in(module: str, name: str) -> Callable[..., Any]:
    """The check of a proof, imported when it is tried: naming the proofs needs no torch."""
    return lambda *given: getattr(import_module(f"ghosttune.proving.{module}"), name)(*given)


PROOFS = (
    Proof(1, "the modules' entries add up to the drop of the guide loss", _in("accounts", "account_closes")),
    Proof(2, "every per-row number equals one backward per row", _in("gradients", "rows_equal_one_backward_each")),
    Proof(3, "measuring leaves training bit-identical", _in("accounts", "looking_changes_nothing")),
    Proof(4, "a row's value is what its removal from a step changes", _in("removal", "values_tell_what_removal_does")),
    Proof(5, "frozen and resumed mean bit-identical", _in("freezing", "frozen_is_frozen")),
    Proof(6, "wrong answers stand at the bottom of the values", _in("planted", "mistakes_are_at_the_bottom")),
    Proof(7, "planted rows are found through the store", _in("stored", "planted_rows_are_found")),
    Proof(8, "training, evaluation and chat prompts are the same", _in("prompts", "prompts_are_the_same")),
    Proof(9, "answers end by themselves after tuning", _in("planted", "answers_end")),
    Proof(10, "sketches are unbiased, and the same in another process", _in("sketches", "sketches_are_faithful")),
    Proof(11, "where there is nothing to find, nothing is found", _in("nothing", "nothing_is_found")),
)


def prove(
    numbers: Iterable[int] = (),
    *,
    quick: bool = False,
    model: str | None = None,
    method: str = "lora",
    listen: Callable[[Proved], None] = lambda proved: None,
    folder: Path | None = None,
) -> list[Proved]:
    """Tries the proofs with these numbers (none: all), tells each result, and returns them all.

    `quick` leaves out the slowest variants, but no proof. With a `model` (folder or hub id; nothing but its
    configuration is read) they are the proofs of its own arithmetic, tuned with `method` at a small size. What they
    make lies in `folder`, or in a temporary one that goes. InputError for a number that no proof has, and for a model
    that cannot be made small or tuned that way.
    """
    METHODS[method]
    with _working(folder) as place, _unreported():
        proofs = PROOFS if model is None else _in("own", "own_proofs")(model, method, place)
        return _all_tried(proofs, set(numbers), Bench(place, quick), listen)


def _all_tried(
    proofs: Sequence[Proof], numbers: set[int], bench: Bench, listen: Callable[[Proved], None]
) -> list[Proved]:
    there = [proof.number for proof in proofs]
    if unknown := sorted(numbers - set(there)):
        have = f"1 to {len(there)}" if there == list(range(1, len(there) + 1)) else listed(there)
        raise InputError(f"no proof has the number {listed(unknown)}; there are {have}")
    tried = []
    for proof in proofs:
        if not numbers or proof.number in numbers:
            tried.append(_tried(proof, bench))
            listen(tried[-1])
    return tried


def _tried(proof: Proof, bench: Bench) -> Proved:
    start = time.perf_counter()
    findings: list[Finding] = []
    error = None
    try:
        findings = proof.check(bench)
    except Exception as fault:  # one that breaks is one that did not hold; the others are tried all the same
        error = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
    return Proved(proof.number, proof.claim, findings, time.perf_counter() - start, error)


@contextmanager
def _working(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with scratch_folder() as scratch:
        yield scratch


@contextmanager
def _unreported() -> Iterator[None]:
    """Without what other libraries say of models that are made to be small, and without their bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
