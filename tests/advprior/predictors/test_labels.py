"""Labels that trained and labels that chose: a run states the later end, and nobody reads an earlier one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advprior.predictors.base import BEFORE
from advprior.predictors.labels import LabelSpan, require_choosing_labels
from advprior.predictors.registry import predictor_class
from advprior.store.errors import AdvpriorError
from ranking.frame.checks import check_model_cutoff
from tests.advprior.predictors.llm.tuning.cycles import cycle_data, cycle_settings
from tests.advprior.predictors.sequence.test_predictor import SMALL, couples

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = st.integers(0, 300).map(lambda days: START + timedelta(days=days))


@given(DAYS, DAYS, DAYS)
def test_a_cut_off_before_any_label_is_refused(trained: datetime, chosen: datetime, stated: datetime) -> None:
    span = LabelSpan(trained, chosen)
    manifest = {"config": {}, "facts": {**span.to_json(), "model_cutoff": stated.isoformat()}}
    if stated < max(trained, chosen):
        with pytest.raises(AdvpriorError, match="PRI017"):
            LabelSpan.of_run(manifest, "run")
    else:
        assert LabelSpan.of_run(manifest, "run") == span
    assert LabelSpan.of_run({"config": {}, "facts": span.to_json()}, "run") == span
    # a prior of this run is refused at every impression that a label of either kind lies after
    shown = np.array([np.datetime64((span.model_cutoff - timedelta(hours=1)).replace(tzinfo=None))])
    cutoff = np.array([np.datetime64(datetime.fromisoformat(span.to_json()["model_cutoff"]).replace(tzinfo=None))])
    finding = check_model_cutoff("llm", cutoff, shown)
    assert finding is not None
    assert finding.code == "RNK001"


def test_what_was_kept_by_a_version_that_did_not_tell_is_refused() -> None:
    facts = {"model_cutoff": START.isoformat()}
    with pytest.raises(AdvpriorError, match="PRI017"):
        LabelSpan.of_run({"config": {BEFORE: True}, "facts": facts}, "run/before")
    assert LabelSpan.of_run({"config": {}, "facts": facts}, "run").model_cutoff == START


@pytest.mark.parametrize("kind", ["sasrec", "llm"])
def test_a_horizon_beyond_the_labels_that_choose_is_refused(kind: str, tmp_path) -> None:
    if kind == "llm":
        data, settings = cycle_data(users=4), cycle_settings("nowhere", horizon_days=30.0)
    else:
        data, settings = couples(4), predictor_class(kind).settings({**SMALL, "horizon_days": 30, "valid_days": 21})
    with pytest.raises(AdvpriorError, match=r"PRI018[^!]*raise \S*valid_days to 30"):
        predictor_class(kind).fit(data, settings, tmp_path)


@pytest.mark.parametrize(("horizon", "valid"), [(7, 7), (7, 21)])
def test_a_horizon_within_them_is_not(horizon: float, valid: float) -> None:
    require_choosing_labels(horizon, valid, "valid_days")
