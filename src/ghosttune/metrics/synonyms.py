"""Synonyms for METEOR from WordNet files as text: lines of `synset <tab> words`, gzip or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ghosttune.errors import DataError
from ghosttune.foreign import lines_of


@dataclass(frozen=True)
class Lemma:
    """A word of a synset, as nltk asks for it."""

    word: str

    def name(self) -> str:
        return self.word


@dataclass(frozen=True)
class Synset:
    """Words of one meaning, as nltk asks for them."""

    words: tuple[str, ...]

    def lemmas(self) -> list[Lemma]:
        return [Lemma(word) for word in self.words]


class Synonyms:
    """What nltk's METEOR asks of a WordNet: the synsets of a word in any of its forms."""

    def __init__(self, synsets: dict[str, list[Synset]], forms: dict[str, list[str]]):
        self._synsets = synsets
        self._forms = forms

    @classmethod
    def read(cls, folder: Path | None) -> Synonyms:
        """From `*synonyms.tsv` and, where it is there, `*irregular_forms.tsv` in a folder; None: no synonyms at all."""
        return _read(folder) if folder is not None else cls({}, {})

    def synsets(self, word: str) -> list[Synset]:
        """Those of the word itself and of what it is a form of."""
        return [synset for base in self._bases(word) for synset in self._synsets.get(base, [])]

    def _bases(self, word: str) -> list[str]:
        """The word, and the base forms that its endings allow, as WordNet's own morphology has them."""
        bases = [word, *self._forms.get(word, [])]
        for ending, instead in ENDINGS:
            if word.endswith(ending) and len(word) > len(ending):
                bases.append(word.removesuffix(ending) + instead)
        return list(dict.fromkeys(bases))


ENDINGS = (
    *(("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man")),
    *(("ies", "y"), ("es", "e"), ("es", ""), ("s", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)
"""The rules of detachment of WordNet's morphy(7)."""


@cache
def _read(folder: Path) -> Synonyms:
    files = {name: _found(folder, name) for name in ("synonyms", "irregular_forms")}
    if files["synonyms"] is None:
        raise DataError(f"evaluate.synonyms: {folder} holds no file that ends in synonyms.tsv (or synonyms.tsv.gz)")
    synsets: defaultdict[str, list[Synset]] = defaultdict(list)
    for columns in _lines(files["synonyms"]):
        synset = Synset(tuple(columns[-1].lower().split()))
        for word in synset.words:
            synsets[word].append(synset)
    forms: defaultdict[str, list[str]] = defaultdict(list)
    if files["irregular_forms"] is not None:
        for columns in _lines(files["irregular_forms"]):
            forms[columns[0]].append(columns[-1])
    return Synonyms(dict(synsets), dict(forms))


def _found(folder: Path, name: str) -> Path | None:
    files = sorted(folder.glob(f"*{name}.tsv")) + sorted(folder.glob(f"*{name}.tsv.gz"))
    return files[0] if files else None


def _lines(path: Path) -> Iterator[list[str]]:
    for number, line in enumerate(lines_of(path), start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise DataError(f"{path.name}:{number}: has no tab; a line is a synset or form, a tab, and its words")
        yield columns
