"""Text metrics against the published values of the scorers they are, and real E2E outputs and references."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import defaultdict

import pytest

from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.metrics.synonyms import Synonyms
from ghosttune.metrics.text import words
from ghosttune.registry import METRICS


def corpus(outputs, references, **options):
    return Corpus([Item(output, tuple(given)) for output, given in zip(outputs, references, strict=True)], **options)


def score(name, outputs, references, **options):
    return METRICS[name].build(corpus(outputs, references, **options))


def by_row(streams):
    return [[reference for reference in row if reference is not None] for row in zip(*streams, strict=True)]


def json_lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


@pytest.fixture(scope="module")
def published(shared):
    return json.loads((shared / "data/metrics_ref/sacrebleu_cases.json").read_text())


def test_bleu_equals_sacrebleus_own_test_vectors(published):
    cases = [case for case in published["corpus_bleu"] if case["kwargs"] in ({}, {"tokenize": "13a"})]
    assert len(cases) >= 3
    for case in cases:
        found = score("bleu", case["hyps"], by_row(case["refs"]))
        assert found.value == pytest.approx(case["expected"], abs=1e-5)
        assert len(found.details["precisions"]) == 4 and "tok:13a" in found.details["signature"]


def test_chrf_equals_sacrebleus_own_test_vectors(published):
    for case in published["chrf_sentence_default_beta2"]:
        found = score("chrf", [case["hyp"]], [case["refs"]])
        assert found.value == pytest.approx(case["expected"], abs=1e-3), "of one sentence, which sacrebleu smoothes"


def test_a_corpus_is_not_the_mean_of_its_rows_and_rows_may_have_unequal_numbers_of_references():
    outputs = ["the dog bit the man quickly today", "it was a surprise for all of us"]
    references = [["the dog bit the man today", "a dog bit him"], ["it was no surprise for any of us"]]
    import sacrebleu

    streams = [[references[0][0], references[1][0]], [references[0][1], None]]
    for name, scorer in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        found = score(name, outputs, references)
        assert found.value == pytest.approx(scorer(outputs, streams).score)  # type: ignore[arg-type]
    assert score("bleu", outputs, references).value != pytest.approx(
        sum(score("bleu", [o], [r]).value for o, r in zip(outputs, references, strict=True)) / 2
    )


def test_meteor_equals_nltks_doctests_without_wordnet_where_no_synonym_matters(shared):
    cases = json.loads((shared / "data/metrics_ref/meteor_nltk_cases.json").read_text())["cases"]
    for case in cases:
        found = score(
            "meteor",
            [" ".join(case["hyp"])],
            [[" ".join(reference) for reference in case["refs"]]],
            synonyms=shared / "data/wordnet",
        )
        assert round(found.value, 4) == case["expected_4dp"]


def test_a_synonym_counts_only_where_the_files_are_given(shared):
    # nltk asks for synonyms of stems, so that words which their stem changes (purchase) never find theirs
    outputs, references = ["he will drive a car"], [["he will drive a auto"]]
    alone = score("meteor", outputs, references)
    helped = score("meteor", outputs, references, synonyms=shared / "data/wordnet")
    assert alone.details["stages"] == ["exact", "stem"] and alone.value < helped.value
    assert helped.value == pytest.approx(1 - 0.5 / 5**3), "five matches in one chunk"


def test_synonyms_know_the_forms_of_a_word(tmp_path):
    (tmp_path / "own_synonyms.tsv").write_text("1-v\tbuy purchase\n2-n\tgoose bird\n")
    (tmp_path / "own_irregular_forms.tsv").write_text("bought\tv\tbuy\n")
    known = Synonyms.read(tmp_path)
    for form in ("buy", "buys", "buying", "bought"):
        assert [lemma.name() for synset in known.synsets(form) for lemma in synset.lemmas()] == ["buy", "purchase"]
    assert known.synsets("nothing") == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("rouge_1", 2 * (5 / 6) * (5 / 6) / (10 / 6)), ("rouge_2", 3 / 5), ("rouge_l", 5 / 6), ("rouge_lsum", 5 / 6)],
)
def test_rouge_by_hand(name, expected):
    found = score(name, ["the cat sat on the mat"], [["the cat lay on the mat", "something else"]])
    assert found.value == pytest.approx(expected)


def test_rouge_l_equals_coco_on_fixed_tokens_up_to_its_beta(shared):
    """COCO's ROUGE-L is the F of the best precision and the best recall (beta 1.2), ours the best F1, stemmed."""
    rows = json_lines(shared / "data/metrics_ref/e2e_coco_tokenised.jsonl.gz")
    expected = json.loads((shared / "data/metrics_ref/e2e_coco_scores.json").read_text())
    found = score("rouge_l", [row["tgen"] for row in rows], [row["refs"] for row in rows])
    assert found.value == pytest.approx(expected["tgen"]["ROUGE_L"], abs=0.02)


def test_rouge_lsum_takes_sentences_apart():
    output, reference = "One came. Two went.", "Two went. One came."
    assert score("rouge_lsum", [output], [[reference]]).value == 1.0
    assert score("rouge_l", [output], [[reference]]).value == 0.5


@pytest.fixture(scope="module")
def e2e(shared):
    """Meaning representation -> all references, of the test set; and what the challenge's systems said."""
    folder = shared / "data/e2e"
    text = gzip.decompress((folder / "testset_w_refs.csv.gz").read_bytes()).decode()
    references = defaultdict(list)
    for row in csv.DictReader(io.StringIO(text)):
        references[row["mr"]].append(row["ref"])
    said = json_lines(folder / "system_outputs_primary.jsonl.gz")
    expected = json.loads((folder / "expected_scores.json").read_text())["systems"]
    return references, said, expected


@pytest.mark.parametrize("system", ["tgen", "slug", "adapt", "chen"])
def test_bleu_of_the_challenges_systems_equals_the_published_one(e2e, system):
    """The challenge used mteval-v13a with 630 sets of references; sacrebleu's 13a is its reimplementation."""
    references, said, expected = e2e
    assert len(said) == 630
    found = score("bleu_lowercase", [row[system] for row in said], [references[row["mr"]] for row in said])
    assert round(found.value / 100, 4) == expected[system]["BLEU"]


@pytest.mark.parametrize("name", ["bleu", "chrf", "exact_match", "rouge_l"])
def test_real_references_score_perfectly_against_themselves(e2e, name):
    references, _, _ = e2e
    sets = list(references.values())[:100]
    perfect = 100 if name in ("bleu", "chrf") else 1
    found = score(name, [given[0] for given in sets], sets)
    assert found.value == pytest.approx(perfect)
    assert score(name, [given[0] for given in sets], [*sets[1:], sets[0]]).value < perfect / 2 + 20 * (perfect > 1)


def test_nothing_said_is_worth_nothing():
    for name in ("bleu", "chrf", "rouge_1", "rouge_l", "meteor", "exact_match"):
        assert score(name, ["", ""], [["the cat"], ["a dog"]]).value == 0


def test_words_are_split_from_punctuation():
    assert words("It's £30, café!") == ["It's", "£", "30", ",", "café", "!"]
