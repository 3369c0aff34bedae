"""The page on advprior.yaml has every key, its example is a valid file, and the defaults are those of the code."""

from __future__ import annotations

import re

import yaml

from advprior.pipeline.settings import Prior, ProjectConfig
from tests.docs.markdown import DOCS, split

PAGE = (DOCS / "project.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \| .* \|$", PAGE.partition("## Keys")[2], flags=re.MULTILINE))


def test_every_key_has_its_row_and_no_row_is_of_another() -> None:
    assert sorted(ROWS) == sorted(ProjectConfig.model_fields)


def test_every_key_inside_a_key_is_named() -> None:
    for name in ("tables", "arms", "clusters", "retrieval", "report", "price", "budget"):
        annotation = ProjectConfig.model_fields[name].annotation
        model = next(
            part for part in (annotation, *getattr(annotation, "__args__", ())) if hasattr(part, "model_fields")
        )
        assert set(model.model_fields) <= set(re.findall(r"`(\w+)`", ROWS[name])), name
    assert {*Prior.model_fields} - {"name", "settings_file"} <= set(re.findall(r"`(\w+)`", ROWS["priors"]))


def test_the_example_is_a_project_file() -> None:
    example, *_ = [block.text for block in split(PAGE.partition("## Keys")[2])[0] if block.language == "yaml"]
    config = ProjectConfig.model_validate(yaml.safe_load(example))
    assert [prior.name for prior in config.priors] == ["popularity", "neighbours", "text_pair", "llm"]
    assert config.served.name == "text_pair"


def test_the_defaults_are_those_of_the_code() -> None:
    config = ProjectConfig.model_validate({"tables": {"folder": "tables"}})
    assert f"{config.arms.seeds} seeds, {config.arms.replicates:,} replicates" in PAGE
    assert (config.origins, config.seed, config.first_answer, config.served.name) == (1, 0, True, "llm")
