"""Each leak check: one test that fires, one that stays silent."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.store.errors import AdvpriorError
from ranking.frame import checks

DOCS = Path(__file__).parents[3] / checks.DOCS
TIMES = np.array(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"], dtype="datetime64[us]")
NEVER = np.datetime64("NaT", "us")
LATER = TIMES + np.timedelta64(1, "us")
SPLIT = np.array(["train", "train", "valid", "test"], dtype=object)


def fires(finding: checks.Finding | None, code: str, severity: str = "error") -> None:
    assert finding is not None
    assert (finding.code, finding.severity) == (code, severity)
    assert finding.message
    assert finding.fix
    assert finding.docs == f"docs/checks.md#{code.lower()}"


def test_model_cutoff_fires() -> None:
    cutoff = TIMES.copy()
    cutoff[2] = LATER[2]
    finding = checks.check_model_cutoff("llm", cutoff, TIMES)
    fires(finding, "RNK001")
    assert finding is not None
    assert "1 of 4" in finding.message
    assert "`llm`" in finding.message


def test_model_cutoff_silent() -> None:
    assert checks.check_model_cutoff("llm", np.append(TIMES[:3], NEVER), TIMES) is None


def test_newer_row_fires() -> None:
    fires(checks.check_not_newer("ad_stats", LATER, TIMES), "RNK002")


def test_newer_row_silent() -> None:
    assert checks.check_not_newer("ad_stats", np.append(TIMES[:3], NEVER), TIMES) is None


def test_available_before_snapshot_fires() -> None:
    fires(checks.check_available_after_snapshot("prior_llm", LATER, TIMES), "RNK003")


def test_available_before_snapshot_silent() -> None:
    assert checks.check_available_after_snapshot("prior_llm", TIMES, TIMES) is None


@pytest.mark.parametrize("split", [["train", "valid", "train", "test"], ["test", "valid", "valid", "train"]])
def test_overlapping_splits_fire(split: list[str]) -> None:
    fires(checks.check_splits_apart(np.array(split, dtype=object), TIMES), "RNK004")


def test_splits_that_share_a_moment_fire() -> None:
    fires(checks.check_splits_apart(SPLIT, TIMES[[0, 1, 1, 3]]), "RNK004")


def test_splits_apart_silent() -> None:
    assert checks.check_splits_apart(SPLIT, TIMES) is None


@pytest.mark.parametrize("found", [[1, 2], [1, 2, 3, 3], [1, 2, 4]])
def test_lost_doubled_or_swapped_rows_fire(found: list[int]) -> None:
    fires(checks.check_rows_kept(np.array([1, 2, 3]), np.array(found)), "RNK005")


def test_rows_kept_in_another_order_silent() -> None:
    assert checks.check_rows_kept(np.array([1, 2, 3]), np.array([3, 1, 2])) is None


def test_different_test_rows_fire() -> None:
    finding = checks.check_same_test_rows({"baseline": "a", "llm": "b", "svd": "a"})
    fires(finding, "RNK006")
    assert finding is not None
    assert "baseline, svd | llm" in finding.message


def test_same_test_rows_silent() -> None:
    assert checks.check_same_test_rows({"baseline": "a", "llm": "a"}) is None


def labelled(rows: int = 4000) -> tuple[np.random.Generator, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng, (rng.random(rows) < 0.1).astype(np.int8)


@pytest.mark.parametrize("leak", ["value", "reversed", "missing", "text"])
def test_golden_feature_fires(leak: str) -> None:
    rng, label = labelled()
    noise = rng.normal(size=len(label))
    column = {
        "value": pd.Series(label + 0.1 * noise),
        "reversed": pd.Series(-label + 0.1 * noise),
        "missing": pd.Series(np.where(label == 1, noise, np.nan)),  # only known where the outcome is
        "text": pd.Series(np.where(label == 1, "bought", "passed")).astype("category"),
    }[leak]
    [finding] = checks.check_golden_features(pd.DataFrame({"noise": noise, "leak": column}), label)
    fires(finding, "RNK007")
    assert "`leak`" in finding.message


def test_suspiciously_good_feature_warns() -> None:
    rng, label = labelled()
    features = pd.DataFrame({"strong": label * 2.85 + rng.normal(size=len(label))})
    [finding] = checks.check_golden_features(features, label)
    fires(finding, "RNK007", "warning")


def test_honest_features_silent() -> None:
    rng, label = labelled()
    features = pd.DataFrame(
        {
            "good": label * 1.5 + rng.normal(size=len(label)),
            "constant": 1.0,
            "unknown": np.nan,
            "text": pd.Series(rng.choice(["a", "b"], len(label))).astype("category"),
            "key": [f"k{i}" for i in range(len(label))],  # too many values for their means to mean anything
        }
    )
    assert checks.check_golden_features(features, label) == []


def test_univariate_auc_by_hand() -> None:
    label = np.array([0, 0, 1, 1])
    assert checks.univariate_auc(pd.Series([1.0, 2.0, 2.0, 3.0]), label) == 3.5 / 4
    assert checks.univariate_auc(pd.Series([np.nan, np.nan, 1.0, 1.0]), label) == 1.0
    assert checks.univariate_auc(pd.Series([1.0, 2.0, 3.0, 4.0]), np.zeros(4)) == 0.5


def test_low_coverage_fires() -> None:
    finding = checks.check_prior_coverage("llm", 0.8, "two users were never scored", "score them")
    fires(finding, "RNK008", "warning")
    assert finding is not None
    assert finding.message.endswith("only 80.0 % of the impressions have a prior of `llm`: two users were never scored")


def test_full_coverage_silent() -> None:
    assert checks.check_prior_coverage("llm", 0.9, "", "") is None


def test_few_positives_fire() -> None:
    split = np.repeat(np.array(["train", "valid", "test"], dtype=object), 200)
    label = np.ones(600)
    label[-150:] = 0
    finding = checks.check_enough_positives(split, label)
    fires(finding, "RNK009", "warning")
    assert finding is not None
    assert finding.message == "few positives: 50 in test"


def test_enough_positives_silent() -> None:
    split = np.repeat(np.array(["train", "valid", "test"], dtype=object), 200)
    assert checks.check_enough_positives(split, np.ones(600)) is None


def test_enforce_raises_errors_and_returns_warnings() -> None:
    warning = checks.check_prior_coverage("llm", 0.0, "none was published", "publish them")
    error = checks.check_not_newer("ad_stats", LATER, TIMES)
    assert checks.enforce([None, warning]) == [warning]
    with pytest.raises(AdvpriorError, match="RNK002") as caught:
        checks.enforce([warning, error, checks.check_model_cutoff("svd", LATER, TIMES)], "the frame")
    assert caught.value.exit_code == 2
    assert "RNK001" in str(caught.value)


def test_every_code_is_documented() -> None:
    root = DOCS.parents[1]
    documented = re.findall(r"^### (RNK\d+|STO\d+)$", DOCS.read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    used = {
        code
        for folder in ("ranking", "advprior")
        for path in (root / folder).rglob("*.py")
        for code in re.findall(r'"((?:RNK00|STO0)\d+)"', path.read_text())
    }
    assert used
    assert used <= set(documented)


@pytest.mark.parametrize(("low", "high"), [(0.0001, 0.002), (-0.003, -0.001)])
def test_a_placebo_that_does_something_fires(low: float, high: float) -> None:
    fires(checks.check_placebo("placebo", low, high), "RNK011", "warning")


@pytest.mark.parametrize(("low", "high"), [(-0.001, 0.002), (0.0, 0.001), (float("nan"), float("nan"))])
def test_a_placebo_that_does_nothing_silent(low: float, high: float) -> None:
    assert checks.check_placebo("placebo", low, high) is None


def test_a_catalog_without_the_advertisers_fires() -> None:
    finding = checks.check_in_catalog("llm", 2, 10)
    fires(finding, "RNK012", "warning")
    assert finding is not None
    assert "80.0%" in finding.message


def test_a_catalog_with_them_silent() -> None:
    assert checks.check_in_catalog("llm", 1, 10) is None


def test_other_catalogs_fire() -> None:
    finding = checks.check_one_catalog({"llm": "v1", "twin": "v1", "als": "v2"})
    fires(finding, "RNK013", "warning")


def test_a_view_that_no_service_has_fires() -> None:
    finding = checks.check_views_joined(["ad_quality"], "ranker_baseline_v1")
    fires(finding, "RNK014", "warning")
    assert finding is not None
    assert "ad_quality" in finding.message


def test_views_that_are_joined_silent() -> None:
    assert checks.check_views_joined([], "ranker_baseline_v1") is None


def test_one_catalog_silent() -> None:
    assert checks.check_one_catalog({"llm": "v1", "twin": "v1"}) is None
    assert checks.check_one_catalog({}) is None
