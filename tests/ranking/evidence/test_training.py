"""`advprior rank train` makes a ranker of an arm, named by itself or by its feature service."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from advprior.store.errors import AdvpriorError
from ranking.cli.measure import train
from ranking.models.arms import load_arms
from ranking.models.ranker import Ranker
from tests.ranking.frames import synthetic_frame, write_frame


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    arms = load_arms().model_dump(mode="json")
    arms["ranker"] |= {"max_rounds": 10, "min_data_in_leaf": 5, "threads": 1}
    (root / "arms.yaml").write_text(yaml.safe_dump(arms))
    return write_frame(root / "frame", users=40)


def run(frame: Path, out: Path, *named: str) -> str:
    options = ["--frame", str(frame), "--arms", str(frame.parent / "arms.yaml"), "--out", str(out)]
    return CliRunner().invoke(train, [*options, *named], catch_exceptions=False).output


def test_a_variant_is_trained_by_its_name_and_served_by_the_priors_service(frame: Path, tmp_path: Path) -> None:
    output = run(frame, tmp_path / "rank", "--arm", "llm_rank")
    assert "llm_rank (ranker_with_priors_v1)" in output
    ranker = Ranker.load(tmp_path / "rank")
    assert ranker.service == "ranker_with_priors_v1"
    assert [f.name for f in ranker.features if f.predictor is not None] == ["prior_llm_rank"]
    assert [f.group for f in ranker.features if f.name == "ad_category"] == ["ad"]
    assert len(ranker.predict(synthetic_frame(users=5))) == 600
    assert "unchanged, reused" in run(frame, tmp_path / "rank", "--arm", "llm_rank")
    by_service = run(frame, tmp_path / "whole", "--service", "ranker_with_priors_v1")
    assert "llm (ranker_with_priors_v1)" in by_service
    assert len(Ranker.load(tmp_path / "whole").features) == len(ranker.features) + 2


@pytest.mark.parametrize("named", [(), ("--arm", "llm", "--service", "ranker_with_priors_v1")])
def test_one_arm_is_named(frame: Path, tmp_path: Path, named: tuple[str, ...]) -> None:
    with pytest.raises(AdvpriorError, match="CFG001"):
        run(frame, tmp_path / "none", *named)
    with pytest.raises(AdvpriorError, match=r"RNK021(.|\n)*llm_rank"):
        run(frame, tmp_path / "none", "--arm", "llm_rnak")
