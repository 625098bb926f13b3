"""A candidate's figures on the held-out rows, each with its interval, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from pg_distill.frame import Cut, FloatArray, Task, has_label, members
from pg_distill.measure.confidence import (
    RESAMPLES,
    bootstrap_interval,
    jackknife,
    paired_error,
    percentiles,
    resampled_each,
    share_interval,
)
from pg_distill.measure.decisions import best_threshold, best_thresholds
from pg_distill.measure.metrics import (
    AGREEMENT,
    AGREEMENT_METRICS,
    CLIP,
    METRICS,
    TINY,
    Labels,
    decided,
    ece,
    fitting,
    full_weights,
    judged,
    loss_of,
    named,
    per_class,
    ratio,
    score,
)
from pg_distill.measure.scores import Compared, Scores

__all__ = ["Judge"]

COMPARED_RESAMPLES = 400  # of the metrics beside the run's own: seconds at 20,000 rows of 26 classes


class Judge:
    """What students, teacher and family are held against: the test rows of one run.

    Parameters
    ----------
    metric
        The run's metric, ``agreement`` where there are no labels.
    y
        (n,) labels of the test rows; those without one are left out.
    teacher
        (n, K) the teacher's outputs on the same rows.
    baseline_y
        Labels of the rows to fit on, of which the majority class or mean is the baseline; ``baseline_weights`` are theirs.
    """

    def __init__(
        self,
        metric: str,
        task: Task,
        y: Labels,
        teacher: FloatArray,
        weights: FloatArray | None,
        *,
        seed: int,
        resamples: int = RESAMPLES,
        baseline_y: Labels | None = None,
        baseline_weights: FloatArray | None = None,
    ) -> None:
        self.task = task
        self.metric = metric
        self._seed, self._resamples = seed, resamples
        labelled = metric != AGREEMENT
        self._inner = metric if labelled else AGREEMENT_METRICS[task]
        # Without labels the teacher's own answer stands in for the truth: that is what agreement means.
        truth = y if labelled else self._hard(teacher)
        self._known = has_label(truth, task)
        self._y = truth[self._known]
        self._w = None if weights is None else weights[self._known]
        self._teacher = teacher[self._known]
        fitted, its_weights = truth, weights
        if baseline_y is not None and labelled:
            fitted, its_weights = baseline_y, baseline_weights
        known = has_label(fitted, task)
        w = full_weights(its_weights, len(fitted))[known]
        if task == "regression":
            constant = ratio(w @ fitted[known], w.sum())[None]
        elif task == "multilabel":
            constant = w @ members(fitted[known], teacher.shape[1]) / max(w.sum(), TINY)
        else:
            constant = np.bincount(fitted[known].astype(np.int64), w, teacher.shape[1]) / max(w.sum(), TINY)
        self._baseline = score(self._inner, self._y, np.tile(constant, (len(self._y), 1)), self._w)
        self._teacher_score = score(self._inner, self._y, self._teacher, self._w)

    @property
    def _names(self) -> Mapping[str, str]:
        """The metrics behind figures that stand beside the run's own."""
        if self.task == "multilabel":
            return {"brier": "neg_brier_score_labels", "ece": "ece_labels"}
        return {"brier": "neg_brier_score", "ece": "ece"}

    def _hard(self, outputs: FloatArray) -> Labels:
        return named(outputs, self.task)

    def baseline(self) -> float | None:
        """Return the metric of always answering with the class shares, or the mean, of the rows to fit on."""
        return _finite(self._baseline)

    def _judged(self, outputs: FloatArray, threshold: Cut) -> FloatArray:
        """Return the outputs that the run's metric sees."""
        return judged(self._inner, outputs[self._known], threshold)

    def value(self, outputs: FloatArray, threshold: Cut = None) -> float | None:
        """Return the run's metric of (n, K) outputs; ``threshold`` as in `score`."""
        return _finite(score(self._inner, self._y, self._judged(outputs, threshold), self._w))

    def threshold(self, outputs: FloatArray) -> Cut:
        """Return the best thresholds of (n, K) outputs for the run's metric; None where nothing is decided by one."""
        if self.metric == AGREEMENT or not METRICS[self._inner].names:
            return None
        if self.task == "multilabel":
            return best_thresholds(self._inner, self._y, outputs[self._known], self._w)
        return best_threshold(self._inner, self._y, outputs[self._known], self._w)

    def figures(self, outputs: FloatArray, threshold: Cut = None) -> Scores:
        """Return every figure of (n, K) outputs; undefined ones are None. ``threshold`` as in `score`."""
        p, y, w = outputs[self._known], self._y, self._w
        judged = self._judged(outputs, threshold)
        value = score(self._inner, y, judged, w)
        interval = bootstrap_interval(self._inner, y, judged, w, seed=self._seed, resamples=self._resamples)
        margin = self._teacher_score - self._baseline
        known: dict[str, Any] = {
            "rows": len(y),
            "score": _finite(value),
            "score_low": _finite(interval.low),
            "score_high": _finite(interval.high),
            "lift": _finite((value - self._baseline) / margin) if margin > 0 else None,
            **self._fidelity(decided(p, threshold)),
        }
        known["metrics"] = {name: _finite(score(name, y, p, w, threshold)) for name in fitting(self.task)}
        if self.task == "regression":
            known |= {"log_loss": None, "brier": None, "ece": None, "distinct_classes": None}
        else:
            known["log_loss"] = _finite(-score(loss_of(self.task), y, p, w))
            known["brier"] = _finite(-score(self._names["brier"], y, p, w))
            known["ece"] = _finite(ece(y, p, w, self.task))
            known["distinct_classes"] = len(np.unique(named(p, self.task, threshold)))
        if self.task == "multilabel":
            known["average_precision"] = per_class(y, p, w)
        return cast(Scores, known)

    def _fidelity(self, p: FloatArray) -> dict[str, float | None]:
        metric = AGREEMENT_METRICS[self.task]
        y, w = self._hard(self._teacher), self._w
        value = score(metric, y, p, w)
        if metric != "accuracy":
            interval = bootstrap_interval(metric, y, p, w, seed=self._seed, resamples=self._resamples)
        else:
            # Kish's effective number of rows.
            n = len(y) if w is None else float(w.sum() ** 2 / (w @ w))
            interval = share_interval(value, n)
        return {
            "fidelity": _finite(value),
            "fidelity_low": _finite(interval.low),
            "fidelity_high": _finite(interval.high),
        }

    def jackknife(self, outputs: FloatArray, threshold: Cut = None) -> list[float | None]:
        """Return what `rank` needs to tell the noise of the run's metric."""
        judged = self._judged(outputs, threshold)
        return [_finite(v) for v in jackknife(self._inner, self._y, judged, self._w)]

    def difference_error(
        self, a: FloatArray, b: FloatArray, thresholds: tuple[Cut, Cut] = (None, None)
    ) -> float | None:
        """Return the standard error of the difference of two outputs in the run's metric, paired, by the jackknife."""
        apart = [
            jackknife(self._inner, self._y, self._judged(p, threshold), self._w)
            for p, threshold in zip((a, b), thresholds, strict=True)
        ]
        return _finite(paired_error(apart[0], apart[1]))

    def tie_break(self, outputs: FloatArray) -> float | None:
        """Return what tells outputs of equal metric apart, higher is better: log loss or error, without labels the divergence."""
        p = outputs[self._known]
        if self.task == "regression" or self.metric != AGREEMENT:
            return _finite(score(loss_of(self.task), self._y, p, self._w))
        t = self._teacher
        divergence = _divergence(t, p)
        if self.task == "multilabel":
            divergence = divergence + _divergence(1.0 - t, 1.0 - p)
        return _finite(-float(np.average(divergence, weights=self._w)))

    def compare(
        self, outputs: Mapping[str, FloatArray], thresholds: Mapping[str, Cut] | None = None
    ) -> Compared:
        """Return the intervals of every metric of some outputs, and of their differences, all from the same draws.

        ``thresholds`` of some of them are as in `score`.

        Returns
        -------
        dict
            ``intervals``: by output and metric its interval, [low, high]. ``versus``: by pair of outputs, as in
            ``"student-teacher"`` for each that comes after another, and metric: ``difference``, ``low``, ``high``.
        """
        names = fitting(self.task)
        extra = [] if self.task == "regression" else [self._names["ece"]]
        each = [p[self._known] for p in outputs.values()]
        cuts = [(thresholds or {}).get(name) for name in outputs]
        w = full_weights(self._w, len(self._y))
        resamples = dict.fromkeys([*names, *extra], min(self._resamples, COMPARED_RESAMPLES))
        resamples[self._inner] = self._resamples  # as in its own interval
        values = resampled_each(resamples, self._y, each, w, self._seed, cuts)
        points = {
            name: [score(name, self._y, p, self._w, t) for p, t in zip(each, cuts, strict=True)]
            for name in names
        }
        points |= {name: [ece(self._y, p, self._w, self.task) for p in each] for name in extra}
        for name, metric in (("log_loss", loss_of(self.task)), ("brier", self._names["brier"])):
            if self.task != "regression":
                values[name], points[name] = -values[metric], [-v for v in points[metric]]
        for name in extra:
            values["ece"], points["ece"] = values.pop(name), points.pop(name)
        intervals: dict[str, Any] = {}
        versus: dict[str, Any] = {}
        for i, a in enumerate(outputs):
            intervals[a] = {name: _ends(v[:, i]) for name, v in values.items()}
            if "ece" in values and intervals[a]["ece"][0] is not None:
                # Drawing rows adds noise to the bins, which their absolute values turn into error: the estimate may lie below.
                intervals[a]["ece"][0] = min(intervals[a]["ece"][0], points["ece"][i])
            for j, b in enumerate(list(outputs)[:i]):
                versus[f"{a}-{b}"] = {}
                for name, v in values.items():
                    low, high = _ends(v[:, i] - v[:, j])
                    difference = _finite(points[name][i] - points[name][j])
                    versus[f"{a}-{b}"][name] = {"difference": difference, "low": low, "high": high}
        return {"intervals": intervals, "versus": versus}


def _divergence(t: FloatArray, p: FloatArray) -> FloatArray:
    return np.asarray((t * (np.log(np.maximum(t, CLIP)) - np.log(np.maximum(p, CLIP)))).sum(axis=1))


def _ends(values: FloatArray) -> list[float | None]:
    interval = percentiles(values)
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
