"""Calibration of a ranker's scores: from log-odds to probabilities, fitted on validation rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from advprior.store.arrays import Double


def fit_calibration(kind: str, raw: Double, label: Any) -> dict[str, Any]:
    """Log-odds to probability, as plain numbers that JSON keeps.

    Parameters
    ----------
    kind : "platt" or "isotonic"
        Platt's logistic function of the log-odds (Platt 1999) is strictly rising, so that calibrating changes no order
        and no tie; isotonic regression (Zadrozny and Elkan 2002) can follow any rising shape.
    raw : float64 [rows]
        Log-odds of validation rows.
    label : int array [rows]
    """
    if kind == "platt":
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(C=1e6).fit(raw[:, None], label)
        slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
        # scores that say nothing (or the opposite) about validation rows keep their order: only the level is set
        return (
            {"kind": "platt", "slope": slope, "offset": offset}
            if slope > 0
            else {"kind": "platt", "slope": 1.0, "offset": 0.0}
        )
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip").fit(raw, label)
    return {"kind": "isotonic", "x": fitted.X_thresholds_.tolist(), "y": fitted.y_thresholds_.tolist()}


def apply_calibration(calibration: Mapping[str, Any], raw: Double) -> Double:
    """Probabilities of log-odds, [rows], by what `fit_calibration` gave.

    >>> apply_calibration({"kind": "platt", "slope": 2.0, "offset": 0.0}, np.array([0.0])).tolist()
    [0.5]
    """
    if calibration["kind"] == "platt":
        odds = calibration["slope"] * raw + calibration["offset"]
        return np.asarray(np.exp(-np.logaddexp(0, -odds)))
    return np.asarray(np.interp(raw, calibration["x"], calibration["y"]), dtype=np.float64)
