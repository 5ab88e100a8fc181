"""Labels, numbers and spans against scikit-learn, seqeval, SQuAD's published scores and hand-made fixtures."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from ghosttune.errors import DataError
from ghosttune.metrics.labels import UNPARSED, named_label
from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.metrics.spans import normalised
from ghosttune.registry import METRICS

NLI = ("contradiction", "entailment", "neutral")


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("entailment", "entailment"),
        ("Entailment.", "entailment"),
        ("The answer is: neutral", "neutral"),
        ("not entailment", None),
        ("It isn't entailment, it is a contradiction", "contradiction"),
        ("entailment or neutral", None),
        ("entailments", None),
        ("neutral neutral neutral", "neutral"),
        ("", None),
        ("I do not know", None),
    ],
)
def test_a_label_is_named_alone_in_whole_words_and_not_denied(said, label):
    assert named_label(said, NLI) == label


def test_of_labels_inside_each_other_the_longest_is_meant():
    labels = ("entailment", "not_entailment")
    assert named_label("not_entailment", labels) == "not_entailment" == named_label("Not entailment!", labels)
    assert named_label("entailment", labels) == "entailment"
    assert named_label("1", ("0", "1", "10")) == "1" and named_label("10", ("0", "1", "10")) == "10"


@pytest.fixture(scope="module")
def labelled():
    """Sixty rows of three labels, a sixth of the answers without one, likelihoods that lean to the truth."""
    random = np.random.default_rng(3)
    items = []
    for _ in range(60):
        truth = NLI[random.choice(3, p=[0.6, 0.3, 0.1])]
        said = random.choice([truth, truth, *NLI, "who knows"])
        nats = {label: float(random.normal(2.0 - (label == truth), 1.0)) for label in NLI}
        items.append(Item(f"It is {said}.", (truth,), label_nats=nats))
    return Corpus(items, NLI)


@pytest.mark.parametrize("prefix", ["", "likelihood_"])
def test_label_metrics_equal_scikit_learns(labelled, prefix):
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    truth = [item.references[0] for item in labelled.items]
    if prefix:
        said = [min(NLI, key=lambda label: item.label_nats[label]) for item in labelled.items]
    else:
        said = [named_label(item.output, NLI) or UNPARSED for item in labelled.items]
        assert said.count(UNPARSED) >= 5
    found = METRICS[f"{prefix}accuracy"].build(labelled)
    assert found.value == pytest.approx(accuracy_score(truth, said))
    names = found.details["confusion"]["labels"]
    assert found.details["confusion"]["rows_are_truth"] == confusion_matrix(truth, said, labels=names).tolist()
    assert found.details["unparsed"] == said.count(UNPARSED)
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(truth, said, labels=NLI, average=average, zero_division=0)
        for kind, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert METRICS[f"{prefix}{average}_{kind}"].build(labelled).value == pytest.approx(value), (average, kind)
        per_label = precision_recall_fscore_support(truth, said, labels=NLI, average=None, zero_division=0)
    assert [found.details["labels"][label]["f1-score"] for label in NLI] == pytest.approx(list(per_label[2]))
    if not prefix:
        unparsed = METRICS["unparsed"].build(labelled)
        assert unparsed.value == said.count(UNPARSED) / 60 and unparsed.interval.n == 60


def test_auc_equals_scikit_learns_and_is_of_two_labels(labelled):
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    items = [
        Item("", (truth,), label_nats={"bad": round(random.normal(truth == "good"), 1), "good": 0.0})
        for truth in random.choice(["bad", "good"], 40)
    ]
    found = METRICS["auc"].build(Corpus(items, ("bad", "good")))
    truth, margins = [item.references[0] == "good" for item in items], [item.label_nats["bad"] for item in items]
    assert found.value == pytest.approx(roc_auc_score(truth, margins)) and found.details["positive"] == "good"
    assert len(set(margins)) < 40, "some are tied"
    drawn = random.multinomial(40, [1 / 40] * 40, 50).astype(float)
    resampled = [roc_auc_score(truth, margins, sample_weight=counts) for counts in drawn]
    assert found.of_counts(drawn) == pytest.approx(np.array(resampled), abs=1e-12)
    one_kind = np.array(truth, float)[None]
    assert np.isnan(found.of_counts(one_kind)).all() and np.isnan(METRICS["auc"].build(labelled).value)


def test_metrics_of_numbers_equal_scikit_learns_and_count_what_is_none():
    from sklearn import metrics

    truth, said = [1.0, 2.5, -3.0, 4.0, 10.0], [1.5, 2.0, -3.0, 5.0, 7.0]
    items = [Item(f" {answer} ", (str(right),)) for answer, right in zip(said, truth, strict=True)]
    items.append(Item("many", ("3",)))
    expected = {
        "mse": metrics.mean_squared_error(truth, said),
        "rmse": metrics.root_mean_squared_error(truth, said),
        "mae": metrics.mean_absolute_error(truth, said),
        "mape": metrics.mean_absolute_percentage_error(truth, said),
        "r2": metrics.r2_score(truth, said),
    }
    for name, value in expected.items():
        found = METRICS[name].build(Corpus(items))
        assert found.value == pytest.approx(value), name
        assert found.details["without_a_number"] == 1
    assert np.isnan(METRICS["mse"].build(Corpus([Item("none", ("3",))])).value)
    assert np.isnan(METRICS["mape"].build(Corpus([Item("1", ("0",))])).value)
    with pytest.raises(DataError, match="is no number"):
        METRICS["mae"].build(Corpus([Item("1", ("three",))]))


def test_the_last_number_is_the_answer():
    right = ("so 3 boxes of 4\n#### 1,250",)
    said = ["it is 1250.", "1250.0", "1,250", "It was 1250, not 12", "-1250", "twelve", "12 50"]
    found = METRICS["number_match"].build(Corpus([Item(text, right) for text in said]))
    assert found.rows == [1, 1, 1, 0, 0, 0, 0]
    assert found.details["without_a_number"] == 1
    with pytest.raises(DataError, match="holds no number"):
        METRICS["number_match"].build(Corpus([Item("1", ("three",))]))


def test_a_form_is_matched_as_a_whole():
    said = [" <a>1\n2</a> ", "<a>1</a> so", "<a></a>"]
    items = [Item(text, ("",), {"pattern": "<a>.+</a>"}) for text in said]
    assert METRICS["regex_match"].build(Corpus(items)).rows == [1, 0, 0]
    for pattern, message in ((None, "column `pattern`"), ("(", "is no regular expression")):
        with pytest.raises(DataError, match=message):
            METRICS["regex_match"].build(Corpus([Item("1", ("",), {"pattern": pattern})]))


def json_of(path):
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def test_squad_scores_of_published_predictions(shared):
    folder = shared / "data/squad"
    expected = json_of(folder / "expected_scores.json")["pred_logistic_regression"]
    said = json_of(folder / "pred_logistic_regression.json.gz")
    questions = [
        question
        for article in json_of(folder / "dev-v1.1.json.gz")["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    items = [Item(said.get(q["id"], ""), tuple(answer["text"] for answer in q["answers"])) for q in questions]
    assert len(items) == 10_570
    assert round(100 * METRICS["squad_em"].build(Corpus(items)).value, 4) == expected["exact_match"]
    assert round(100 * METRICS["squad_f1"].build(Corpus(items)).value, 4) == expected["f1"]


def test_squads_normalisation():
    assert normalised("The  Cat's (an) hat!") == "cats hat"
    empty = Corpus([Item("the", ("a",)), Item("", ("cat",)), Item("cat", ("the",))])
    assert METRICS["squad_f1"].build(empty).rows == [1.0, 0.0, 0.0]


def test_entity_scores_equal_seqevals():
    import warnings

    from seqeval.metrics import f1_score, precision_score, recall_score

    truth = ["B-PER I-PER O B-LOC O", "O O O", "B-ORG I-ORG I-ORG O", "B-LOC O B-LOC O"]
    said = ["B-PER I-PER O B-ORG O", "O B-LOC O", "B-ORG I-ORG O O", "B-LOC O B-LOC O"]
    corpus = Corpus([Item(output, (right,)) for output, right in zip(said, truth, strict=True)])
    lists = [row.split() for row in truth], [row.split() for row in said]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, scorer in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
            assert METRICS[f"entity_{name}"].build(corpus).value == pytest.approx(scorer(*lists)), name


def test_tags_of_another_length_or_kind_are_outside():
    items = [
        Item("B-PER I-PER O B-LOC B-LOC B-LOC", ("B-PER I-PER O B-LOC",)),
        Item("person !", ("B-PER O",)),
        Item("", ("O",)),
    ]
    assert METRICS["entity_precision"].build(Corpus(items)).value == 1.0
    assert METRICS["entity_recall"].build(Corpus(items)).value == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="no IOB tag"):
        METRICS["entity_f1"].build(Corpus([Item("O", ("PERSON",))]))


def test_perplexity_is_of_the_corpus():
    found = METRICS["perplexity"].build(
        Corpus([Item("", ("a",), nats=2.0, targets=2), Item("", ("b",), nats=7.0, targets=1)])
    )
    assert found.value == pytest.approx(np.exp(3.0)) and found.rows == pytest.approx([np.exp(1.0), np.exp(7.0)])
