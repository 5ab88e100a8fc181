"""The eleven proofs, and how they are tried one after another."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from ghosttune.errors import InputError, listed
from ghosttune.proving.findings import Bench, Finding, Proof, Proved


def _in(module: str, name: str) -> Callable[[Bench], list[Finding]]:
    """The check of a proof, imported when it is tried: naming the proofs needs no torch."""
    return lambda bench: getattr(import_module(f"ghosttune.proving.{module}"), name)(bench)


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
    listen: Callable[[Proved], None] = lambda proved: None,
    folder: Path | None = None,
) -> list[Proved]:
    """Tries the proofs with these numbers (none: all), tells each result, and returns them all.

    `quick` leaves out the slowest variants, but no proof. What they make lies in `folder`, or in a temporary one that
    goes. InputError for a number that no proof has.
    """
    chosen = set(numbers) or {proof.number for proof in PROOFS}
    if unknown := sorted(chosen - {proof.number for proof in PROOFS}):
        raise InputError(f"no proof has the number {listed(unknown)}; there are 1 to {len(PROOFS)}")
    tried = []
    with _working(folder) as place, _unreported():
        bench = Bench(place, quick)
        for proof in PROOFS:
            if proof.number in chosen:
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
    with tempfile.TemporaryDirectory(prefix="ghosttune-prove-") as name:
        yield Path(name)


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
