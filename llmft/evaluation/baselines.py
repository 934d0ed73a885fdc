"""Baselines: the best constant, TF-IDF, and the probe; the gains of variants over them (D9)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from llmft.config.metrics import list_metrics
from llmft.config.task import Task
from llmft.data.batches import make_targets
from llmft.data.fields import Row, join_pair
from llmft.data.prepared import PreparedData
from llmft.evaluation.post_hoc_fitting import name_fit, refit
from llmft.evaluation.probe_baseline import PredictedProbe
from llmft.evaluation.rows import LabelledRows
from llmft.evaluation.variants import Run, add_unknown
from llmft.evaluation.verdict import (
    OutputsByVariant,
    Rules,
    compare_with_reference,
    jackknife_variants,
)
from llmft.metrics.definitions import Floats, find_label_type
from llmft.prediction.post_hoc_fit import apply_fit
from llmft.results.evaluation import BaselineGain, Measurement, ProbeBaseline
from llmft.results.run import PostHocFit

Outputs = NDArray[np.float64]


class MeasuredBaselines(NamedTuple):
    """What the baselines reach on the rows, and how much better the variants are."""

    measurements: dict[str, Measurement]
    """Baseline -> its metrics."""
    gains: dict[str, dict[str, BaselineGain]]
    """Variant -> baseline -> its gain; a frozen variant has none over the probe."""
    probe: ProbeBaseline | None

    def get_values(self, metric: str) -> dict[str, float | None]:
        """Return the metric of the constant and of TF-IDF, None where it is undefined."""
        return {name: self.measurements[name].metrics.get(metric) for name in ("constant", "tfidf")}


def measure_baselines(
    variants: Mapping[str, Sequence[Run]], rows: LabelledRows, *, data: PreparedData,
    fit: PostHocFit | None, metric: str, probe: PredictedProbe | None,
) -> MeasuredBaselines:  # fmt: skip
    """Predict and measure the baselines, and compare the variants with them.

    The probe and the variants are compared with their calibrators or thresholds if all have some by
    the same method, as training fits them to several labels; else without.

    Args:
        variants: Variant -> its runs, with their predictions of the rows.
        rows: The rows.
        data: The prepared data; baselines are fitted on its train and val.
        fit: Calibrators or thresholds that the constant and TF-IDF get alike.
        metric: The leading metric.
        probe: The baseline `probe` with its predictions; None to leave it out.
    """
    outputs = predict_baselines(
        rows, train_rows=data.read_split("train"), val_rows=data.read_split("val"), task=data.task,
        fit=fit,
    )  # fmt: skip
    measurements = {name: rows.measure([found])[0] for name, found in outputs.items()}
    scores = {name: [run.decision_scores for run in runs] for name, runs in variants.items()}
    gains = measure_gains(outputs, scores, rows, metric=metric)
    if probe is None:
        return MeasuredBaselines(measurements, gains, None)
    tuned = {name: runs for name, runs in variants.items() if not runs[0].record.is_frozen}
    every = [probe.run, *(run for runs in variants.values() for run in runs)]
    if len({name_fit(run.fit) for run in every}) == 1:
        scores = {name: scores[name] for name in tuned}
        probe_NC = probe.run.decision_scores
    else:
        scores = {name: [run.raw_outputs for run in runs] for name, runs in tuned.items()}
        probe_NC = probe.run.raw_outputs
    measurements["probe"] = rows.measure([probe_NC])[0]
    for name, found in measure_gains({"probe": probe_NC}, scores, rows, metric=metric).items():
        gains[name] |= found
    return MeasuredBaselines(measurements, gains, probe.baseline)


def predict_baselines(
    rows: LabelledRows,
    *,
    train_rows: list[Row],
    val_rows: list[Row],
    task: Task,
    fit: PostHocFit | None,
) -> dict[str, Floats]:
    """Return the decision scores of the best constant and of TF-IDF, both fitted on train, [N, C].

    Args:
        rows: The rows to predict.
        train_rows: All rows of train.
        val_rows: All rows of val, for calibrators or thresholds.
        task: Of all these rows.
        fit: Calibrators or thresholds of the run that they are compared with: the baselines get
            some by the same method.
    """
    train, val = (make_targets(r, label_names=rows.names).numpy() for r in (train_rows, val_rows))
    train_texts, texts = (
        [join_pair(row, task.fields) for row in found]
        for found in (train_rows, [*val_rows, *rows.rows])
    )
    num_outputs, num_val = len(rows.names), len(val)
    num_known = num_outputs if fit is None else len(fit.names)
    constant = predict_constant(train, num_rows=len(texts), num_outputs=num_outputs)
    tfidf = predict_tfidf(train_texts, train, texts=texts, num_outputs=num_outputs)
    found = {}
    for name, outputs_NC in {"constant": constant, "tfidf": tfidf}.items():
        own = None
        if fit is not None and (name != "constant" or fit.thresholds is not None):
            known = val if val.ndim == 1 else val[:, :num_known]
            own = refit(fit, known, outputs_NC[:num_val, :num_known], names=fit.names, model=name)
        scores_NC = apply_fit(outputs_NC[num_val:, :num_known], own).decision_scores_NC
        found[name] = add_unknown(scores_NC, num_outputs - num_known)
    return found


def measure_gains(
    baselines: Mapping[str, Floats], variants: OutputsByVariant, rows: LabelledRows, *, metric: str
) -> dict[str, dict[str, BaselineGain]]:
    """Return variant -> baseline -> its gain, without those for which the metric is undefined.

    Args:
        baselines: Baseline -> its decision scores [N, C].
        variants: Variant -> decision scores [N, C] of each of its runs.
        rows: The rows.
        metric: The leading metric.
    """
    label_type, num_outputs = find_label_type(rows.labels), len(rows.names)
    if metric not in list_metrics(label_type, rows.config, num_outputs=num_outputs):
        return {variant: {} for variant in variants}  # such as kappa with classes out of order
    own = {name: f"baseline {name}" for name in baselines}  # names of variants have no spaces
    jackknifed = jackknife_variants(
        {**{own[name]: [outputs_NC] for name, outputs_NC in baselines.items()}, **variants},
        rows.labels,
        rules=Rules(metric, "", margin=0.0, min_difference=0.0),
        groups=rows.groups,
        config=rows.config,
    )
    gains: dict[str, dict[str, BaselineGain]] = {variant: {} for variant in variants}
    for name in baselines:
        compared = {own[name], *variants}
        against = jackknifed._replace(
            variants={n: found for n, found in jackknifed.variants.items() if n in compared},
            rules=jackknifed.rules._replace(reference=own[name]),
        )
        for variant, pair in compare_with_reference(against).items():
            finding: Literal["better", "worse", "not told apart"] = "not told apart"
            if pair.finding == "better" and pair.interval.low > 0:
                finding = "better"
            elif pair.interval.high < 0 and pair.shortage is None:
                finding = "worse"
            gains[variant][name] = BaselineGain(
                gain=pair.gain, interval=pair.interval, finding=finding
            )
    return gains


def predict_constant(train_labels: NDArray[Any], *, num_rows: int, num_outputs: int) -> Outputs:
    """Return each dimension's training median, or the classes' or labels' frequencies, [N, C]."""
    match find_label_type(train_labels):
        case "scores":
            constant = np.median(train_labels, axis=0)
        case "class":
            constant = np.bincount(train_labels, minlength=num_outputs) / len(train_labels)
        case "multilabel":
            constant = train_labels.mean(axis=0)
    return np.tile(constant, (num_rows, 1))


def predict_tfidf(
    train_texts: list[str], train_labels: NDArray[Any], *, texts: list[str], num_outputs: int
) -> Outputs:
    """Fit ridge or logistic regression on TF-IDF of words and bigrams; return outputs [N, C].

    Multilabel tasks get one logistic regression per label.
    """
    words = TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, 2),
        min_df=2,
        max_features=50_000,
        strip_accents="unicode",
    )
    try:
        train = words.fit_transform(train_texts)
    except ValueError:  # no word is in two texts
        train = words.set_params(min_df=1, analyzer="char").fit_transform(train_texts)
    features = words.transform(texts)
    match find_label_type(train_labels):
        case "scores":
            ridge = Ridge(alpha=1.0).fit(train, train_labels)
            return np.asarray(ridge.predict(features), dtype=np.float64).reshape(len(texts), -1)
        case "class":
            return _predict_classes(train, train_labels, features, num_outputs)
        case "multilabel":
            columns = [
                _predict_classes(train, column_N * 1, features, 2) for column_N in train_labels.T
            ]
            return np.stack([probs_N2[:, 1] for probs_N2 in columns], axis=1)


def _predict_classes(
    train: csr_matrix, labels_N: NDArray[np.int64], features: csr_matrix, num_classes: int
) -> Outputs:
    """Return probabilities [N, C]; 0 for classes without a training row."""
    present = np.unique(labels_N)
    outputs_NC = np.zeros((features.shape[0], num_classes))
    if len(present) == 1:
        outputs_NC[:, present] = 1.0
        return outputs_NC
    model = LogisticRegression(C=10.0, max_iter=1_000).fit(train, labels_N)
    outputs_NC[:, present] = model.predict_proba(features)
    return outputs_NC
