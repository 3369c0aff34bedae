"""Controls of a kind: whose each is follows from settings; what a project lacks of them is said with what adds it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from advprior.pipeline.armsfile import arms_text, control_names, controls_absent
from advprior.pipeline.fit import validated_settings
from advprior.pipeline.project import lay_out
from advprior.pipeline.settings import ProjectConfig
from advprior.store.errors import AdvpriorError
from advprior.store.project_files import PROJECT_FILE
from ranking.cli.candidates import _controls
from ranking.evidence.claims import expected_of
from ranking.evidence.lift import Lifts
from ranking.evidence.verdict import judge
from ranking.models.arms import Arms
from tests.ranking.evidence.test_verdict import lift

PAIRS = {"by": "advertiser_category", "predictor": "text"}
SENTENCES = {"base": "sentence-transformers/all-MiniLM-L6-v2"}
TEXT, MINILM = {"name": "text_pair", **PAIRS}, {"name": "minilm_pair", **PAIRS, "settings": SENTENCES}
WORDS = {"name": "lexical_pair", **PAIRS, "settings": {"base": "lexical", "points": 100}}
RANDOM = {"name": "text_twin_pair", **PAIRS, "settings": {"twin": True}}


def config(*priors: Any) -> ProjectConfig:
    return ProjectConfig.model_validate({"tables": {"example": "clicks"}, "priors": list(priors)})


def arms_of(made: ProjectConfig, folder: Any = None) -> Arms:
    return Arms.model_validate(yaml.safe_load(arms_text(made, folder)))


def kin(arms: Arms, name: str) -> dict[str, str]:
    return {kind: arm.name for kind, arm in arms.kin_of(arms.find(name)).items()}


def test_words_serve_every_prior_of_the_same_texts_and_random_weights_those_of_their_own_network() -> None:
    arms = arms_of(config(MINILM, WORDS, RANDOM, TEXT))
    assert kin(arms, "text_pair") == {"lexical": "lexical_pair", "random_weights": "text_twin_pair"}
    assert kin(arms, "minilm_pair") == {"lexical": "lexical_pair"}
    assert arms.find("minilm_pair").label == "+ minilm prior by category"
    random = {"name": "minilm_random", **PAIRS, "settings": {**SENTENCES, "twin": True}}
    both = arms_of(config(MINILM, WORDS, RANDOM, TEXT, random))
    assert kin(both, "minilm_pair") == {"lexical": "lexical_pair", "random_weights": "minilm_random"}
    alone = arms_of(config(MINILM, RANDOM))  # of another network: a control, and of no kind
    assert (alone.find("text_twin_pair").role, alone.find("text_twin_pair").kind, kin(alone, "minilm_pair")) == (
        "control",
        None,
        {},
    )


def test_each_prior_has_the_words_whose_other_settings_are_its_own() -> None:
    fewer = {**MINILM, "settings": {**SENTENCES, "points": 100}}
    more = {"name": "words_of_all", **PAIRS, "settings": {"base": "lexical"}}
    arms = arms_of(config(TEXT, fewer, WORDS, more))
    assert (kin(arms, "text_pair")["lexical"], kin(arms, "minilm_pair")["lexical"]) == ("words_of_all", "lexical_pair")


def test_the_verdict_of_each_has_the_words_beside_it() -> None:
    made = config(TEXT, MINILM, WORDS)
    arms = arms_of(made)
    expected = {name: expected_of("text") for name in ("text_pair", "minilm_pair")}
    lifts = [lift(arm.name, "baseline", 0.004, 0.002, 0.006) for arm in arms.arms[1:]]
    lifts += [lift(name, "lexical_pair", 0.001, -0.001, 0.003) for name in expected]
    outcome = judge(Lifts(lifts), arms, expected=expected)
    assert len(outcome.sentences) == 2
    for sentence in outcome.sentences:
        assert "its lexical control: +0.0040" in sentence
        assert "random-weight control: not measured" in sentence
    names = [prior.name for prior in made.priors]
    assert _controls(",".join(control_names(made)), names) == (
        ["lexical_pair"],
        {"lexical_pair": ("lexical", "text_pair", "minilm_pair")},
    )


@pytest.mark.parametrize(
    "priors",
    [
        ["popularity", "neighbours", TEXT, MINILM],
        [{"name": "llm", "settings": {"layers": 4}}, TEXT, WORDS],
        [{"name": "hybrid", "settings": {"encoder": {**SENTENCES, "layers": 4}, "training": {"seed": 3}}}],
        [{"name": "l3ae_pair", "predictor": "l3ae", "by": "advertiser_category"}, "llm", RANDOM],
    ],
)
def test_what_a_project_lacks_is_told_with_the_entry_that_adds_it(tmp_path: Any, priors: list[Any]) -> None:
    lay_out(tmp_path, "clicks")
    made = config(*priors)
    lines = controls_absent(made, tmp_path)
    assert lines
    entries = [yaml.safe_load(line.partition(f"{PROJECT_FILE}: ")[2]) for line in lines]
    for entry in entries:
        validated_settings(entry["predictor"], entry["settings"], "the line")
    whole = config(*priors, *entries)
    assert controls_absent(whole, tmp_path) == []
    arms = arms_of(whole, tmp_path)
    for prior in made.priors:
        if arms.find(prior.name).role == "treatment":
            assert sorted(kin(arms, prior.name)) == sorted(expected_of(prior.predictor))


def test_priors_that_one_control_would_serve_are_named_in_one_line(tmp_path: Any) -> None:
    lay_out(tmp_path, "clicks")
    fewer = {**TEXT, "name": "few_pair", "settings": {"points": 50}}
    lines = controls_absent(config(TEXT, fewer, MINILM), tmp_path)
    assert {line.partition(":")[0] for line in lines} == {
        "text_pair, few_pair, minilm_pair have no lexical control",
        "text_pair, few_pair have no random-weight control",
        "minilm_pair has no random-weight control",
    }


def test_what_a_settings_file_says_counts_and_what_the_user_wrote_of_arms_stays(tmp_path: Any) -> None:
    lay_out(tmp_path, "clicks")
    (tmp_path / "words.yaml").write_text("base: lexical\n")
    made = config(TEXT, MINILM, {"name": "words", **PAIRS, "settings": "words.yaml"})
    assert kin(arms_of(made, tmp_path), "minilm_pair") == {"lexical": "words"}
    path = tmp_path / "configs" / "arms.yaml"
    content = yaml.safe_load(path.read_text())
    own = {"name": "words", "label": "+ words", "role": "control", "kind": "lexical", "of": ["minilm_pair"]}
    content["arms"].append({**own, "adds": ["prior_words"]})
    path.write_text(yaml.safe_dump(content))
    arms = arms_of(made, tmp_path)
    assert (kin(arms, "minilm_pair"), kin(arms, "text_pair")) == ({"lexical": "words"}, {})


def test_of_is_a_name_or_several_and_a_file_says_it_as_before() -> None:
    arms = arms_of(config(TEXT, MINILM, WORDS, RANDOM))
    written = {arm["name"]: arm["of"] for arm in arms.model_dump(mode="json")["arms"]}
    assert (written["text_twin_pair"], written["text_pair"]) == ("text_pair", None)
    assert written["lexical_pair"] == ["text_pair", "minilm_pair"]
    assert Arms.model_validate(arms.model_dump(mode="json")) == arms
    with pytest.raises(AdvpriorError, match="a placebo shuffles the priors of one arm"):
        arms.with_arm("shuffled", ["prior_x"], role="placebo", of=["text_pair", "minilm_pair"])
    more = arms.with_arm("hashed", ["prior_x"], role="control", kind="random_weights", of="minilm_pair")
    assert kin(more, "minilm_pair")["random_weights"] == "hashed"
