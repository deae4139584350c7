"""Results by class: as scikit-learn has them, short for many classes, and in words where nothing is learned."""

import csv
import math

import numpy as np
import pytest
from sklearn import metrics

from basisnet_jax import plots
from basisnet_jax.early_exit import Rule
from basisnet_jax.inference import by_class, evaluate


def split(classes, images, right, seed=0, absent=()):
    """Rows as of evaluation, of which so many are right; the classes `absent` have no images."""
    random = np.random.default_rng(seed)
    labels = random.choice(np.setdiff1d(np.arange(classes), absent), images)
    rows = {"label": labels, "confidence": random.uniform(size=images)}
    for prefix, share in (("preview_", right / 2), ("", right)):
        predictions = np.where(random.uniform(size=images) < share, labels, random.integers(0, classes - 1, images))
        rows[f"{prefix}prediction"] = predictions  # the last class is never a wrong answer
        rows[f"{prefix}top1"] = np.float32(predictions == labels)
        rows[f"{prefix}loss"] = rows[f"{prefix}top5"] = random.uniform(size=images)
    return rows


@pytest.mark.filterwarnings("ignore:.*not in y_true")
def test_as_scikit_learn(tmp_path):
    names = [f'a "{i}", b' for i in range(7)]
    rows, rule = split(7, 400, 0.6, absent=(2, 6)), Rule(0.7)
    found = by_class.answers(rows, rule)
    expected = {"preview": rows["preview_prediction"], "final": rows["prediction"]}
    expected["early_termination"] = np.where(rows["confidence"] >= 0.7, expected["preview"], expected["final"])
    report, labels = by_class.describe(rows["label"], found, names), rows["label"]
    assert list(found) == list(expected)
    by_class.write_csv(labels, found, names, str(tmp_path / "confusion.csv"))
    with open(tmp_path / "confusion.csv", newline="") as file:
        pairs = list(csv.DictReader(file))
    for head, prefix in (("preview", "preview_"), ("final", ""), ("early_termination", "early_termination_")):
        np.testing.assert_array_equal(found[head], expected[head])
        matrix = metrics.confusion_matrix(labels, expected[head], labels=np.arange(7))
        precision, recall, _, counts = metrics.precision_recall_fscore_support(
            labels, expected[head], labels=np.arange(7), zero_division=np.nan
        )
        assert [row["count"] for row in report["classes"]] == counts.tolist()
        for name, values in (("precision", precision), ("recall", recall)):
            ours = [np.nan if row[prefix + name] is None else row[prefix + name] for row in report["classes"]]
            np.testing.assert_allclose(ours, values)
        assert math.isnan(recall[2]) and math.isnan(precision[6])
        told = np.zeros((7, 7), int)
        for pair in pairs:
            told[names.index(pair["label"]), names.index(pair["prediction"])] = pair[head]
        np.testing.assert_array_equal(told, matrix)
        balanced = metrics.balanced_accuracy_score(labels, expected[head])
        assert by_class.balanced_accuracy(labels, found[head]) == pytest.approx(balanced)
    final = metrics.confusion_matrix(labels, rows["prediction"], labels=np.arange(7))
    np.fill_diagonal(final, 0)
    most = [of["count"] for of in report["confused"]]
    assert most == np.sort(final.ravel())[::-1][: len(most)].tolist()
    assert all(
        final[names.index(of["label"]), names.index(of["prediction"])] == of["count"] for of in report["confused"]
    )
    assert report["majority_class"] == names[np.bincount(labels).argmax()]
    summary = evaluate.summarize(rows)
    assert summary["majority_top1"] == pytest.approx(np.bincount(labels).max() / 400)
    assert summary["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, rows["prediction"]))
    with pytest.raises(ValueError, match="label 5, expected one of 0 to 3"):
        by_class.describe(labels, found, names[:4])


def test_many_classes_make_a_short_table(tmp_path):
    rows = split(1000, 20_000, 0.8)
    found = by_class.answers(rows, None)
    assert list(found) == ["preview", "final"]
    report = by_class.describe(rows["label"], found, [f"class {i}" for i in range(1000)])
    lines = by_class.table(report).splitlines()
    assert len(lines) < 20 and "10 of 1000 classes" in by_class.table(report)
    recalls = sorted(row["recall"] for row in report["classes"])
    assert [row["recall"] for row in by_class.ends(report["classes"])] == recalls[:5] + recalls[-5:]
    plots.confusion(rows["label"], found, [""] * 1000, "test", str(tmp_path / "many.png"))
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")


def test_one_pair_of_a_thousand_classes_is_in_the_picture():
    from matplotlib.figure import Figure

    labels = np.repeat(np.arange(1000), 3)
    predictions = labels.copy()
    predictions[3 * 700 : 3 * 700 + 2] = 30
    image = plots.draw_confusion(Figure().add_subplot(), labels, predictions, [""] * 1000)
    shares = np.asarray(image.get_array())
    assert (
        shares.shape == (250, 250)
        and shares[175, 7] == pytest.approx(2 / 3)
        and shares.sum() == pytest.approx(250 + 2 / 3)
    )


def diagnosed(labels, predictions, loss, classes):
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    rows = {"label": labels, "prediction": predictions, "top1": np.float32(labels == predictions)}
    rows |= {"top5": rows["top1"], "loss": np.full(len(labels), loss)}
    names = [f"no. {i}" for i in range(classes)]
    report = evaluate.summarize(rows) | by_class.describe(labels, {"final": predictions}, names)
    report |= {"step": 1, "split": "test", "madds": 1e6}
    text, found = evaluate.table(report), by_class.diagnosis(report)
    assert text.count("--config.num_epochs") == (found is not None)
    assert ("top-5" in text) == (classes > 5)
    return found


def test_who_has_learned_nothing_is_told_in_words():
    labels = np.arange(100) % 10
    assert diagnosed(labels, labels, 0.1, 10) is None
    assert 'is "no. 3" for every image' in diagnosed(labels, np.full(100, 3), 1.0, 10)
    few = [0] * 60 + [1] * 40
    worse = diagnosed(few, [0] * 59 + [1] + [0] * 40, 0.6, 2)
    assert 'top-1 is 0.5900. Always answering "no. 0" gives 0.6000' in worse
    half_right = np.where(np.arange(100) < 13, labels, (labels + 1) % 10)
    assert "2.290. Guessing gives log(10) = 2.303" in diagnosed(labels, half_right, 2.29, 10)
    assert diagnosed(labels, half_right, 1.5, 10) is None
    assert diagnosed(labels, labels, 2.29, 10) is None  # right, though not sure
    assert diagnosed([1] * 9, [1] * 9, 0.1, 2) is None  # of one class nothing can be told
