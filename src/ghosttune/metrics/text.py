"""How near a text is to its references: BLEU, chrF, ROUGE, METEOR and exact match, over a corpus.

Every metric takes all references of a question; several rows with the same prompt are one question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ghosttune.metrics.scoring import Corpus, Item, Metric, Score, of_hits, of_mean, of_sums
from ghosttune.metrics.synonyms import Synonyms
from ghosttune.registry import METRICS


@METRICS.register("exact_match", Metric("share of questions", "own"))
def exact_match(corpus: Corpus) -> Score:
    """The answer is one of the references, letter by letter, blanks at the ends aside."""
    return of_hits(
        [item.output.strip() in {reference.strip() for reference in item.references} for item in corpus.items]
    )


@METRICS.register("stopped", Metric("share of questions", "own", "endings"))
def stopped(corpus: Corpus) -> Score:
    """The answer ends by itself, at a stop token, within evaluate.max_new_tokens."""
    return of_hits([item.stopped for item in corpus.items])


def _bleu(lowercase: bool, meaning: str) -> Callable[[Corpus], Score]:
    def bleu(corpus: Corpus) -> Score:
        from sacrebleu.metrics.bleu import BLEU

        metric = BLEU(lowercase=lowercase, force=True)
        score = _sacrebleu(metric, corpus)
        whole: Any = metric.corpus_score(corpus.outputs, _streams(corpus.items))
        details = {
            "precisions": whole.precisions,
            "brevity_penalty": whole.bp,
            "lengths": {"answers": whole.sys_len, "references": whole.ref_len},
            "signature": str(metric.get_signature()),
        }
        return replace(score, details=details)

    bleu.__doc__ = meaning
    return bleu


for _name, _lowercase, _meaning in (
    ("bleu", False, "BLEU over the corpus with all references; n-gram precisions and signature beside it."),
    ("bleu_lowercase", True, "BLEU in lower case, as mteval-v13a has it and the E2E challenge published it."),
):
    METRICS.register(_name, Metric("0 to 100", "sacrebleu, tokenizer 13a"))(_bleu(_lowercase, _meaning))


@METRICS.register("chrf", Metric("0 to 100", "sacrebleu, character 6-grams, beta 2"))
def chrf(corpus: Corpus) -> Score:
    """Character n-gram F-score over the corpus, per question against the nearest reference."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    score = _sacrebleu(metric, corpus)
    metric.corpus_score(corpus.outputs, _streams(corpus.items))
    return replace(score, details={"signature": str(metric.get_signature())})


def _sacrebleu(metric: Any, corpus: Corpus) -> Score:
    """Its value as a function of the counts that sacrebleu takes from each answer, as its own bootstrap has it."""
    statistics = np.array(metric._extract_corpus_statistics(corpus.outputs, _streams(corpus.items)), np.int64)

    def value(sums: np.ndarray) -> np.ndarray:
        return np.array([metric._compute_score_from_stats(row.astype(int).tolist()).score for row in sums])

    return of_sums(statistics, value, value(statistics).tolist())


def _streams(items: Sequence[Item]) -> Any:
    """References as sacrebleu takes them: the first of every question, then the second, None where there is none."""
    most = max(len(item.references) for item in items)
    return [[item.references[at] if at < len(item.references) else None for item in items] for at in range(most)]


def _rouge(kind: str, meaning: str) -> Callable[[Corpus], Score]:
    def rouge(corpus: Corpus) -> Score:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=True)
        split = _one_sentence_a_line if kind == "rougeLsum" else str
        return of_mean(
            [
                max(scorer.score(split(text), split(item.output))[kind].fmeasure for text in item.references)
                for item in corpus.items
            ]
        )

    rouge.__doc__ = meaning
    return rouge


for _name, _kind, _meaning in (
    ("rouge_1", "rouge1", "F-score of shared words, stemmed; mean over questions of the best reference."),
    ("rouge_2", "rouge2", "F-score of shared word pairs, stemmed; mean over questions of the best reference."),
    ("rouge_l", "rougeL", "F-score of the longest common subsequence of words, stemmed; the best reference each."),
    ("rouge_lsum", "rougeLsum", "As rouge_l, sentence by sentence over the whole text."),
):
    METRICS.register(_name, Metric("0 to 1", "rouge-score with stemming"))(_rouge(_kind, _meaning))


def _one_sentence_a_line(text: str) -> str:
    """What rougeLsum takes for sentences are lines."""
    return re.sub(r"(?<=[.!?])\s+(?=\S)", "\n", text.strip())


@METRICS.register("meteor", Metric("0 to 1", "nltk: alpha 0.9, beta 3, gamma 0.5; words in lower case"))
def meteor(corpus: Corpus) -> Score:
    """Words matched exactly, by stem and, with evaluate.synonyms, by meaning, and how scattered they are."""
    from nltk.translate.meteor_score import meteor_score

    known: Any = Synonyms.read(corpus.synonyms)
    scores = [
        meteor_score([words(reference) for reference in item.references], words(item.output), wordnet=known)
        for item in corpus.items
    ]
    return of_mean(scores, stages=["exact", "stem", *(["synonym"] if corpus.synonyms else [])])


def words(text: str) -> list[str]:
    """Words and single marks of punctuation."""
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text)
