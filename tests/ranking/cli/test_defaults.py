"""Commands that run in a project take its own files as defaults, say so, and give way to an explicit option."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner

from advprior.cli import cli
from advprior.pipeline.project import lay_out
from advprior.store.errors import AdvpriorError
from advprior.store.project_files import ARMS_FILE, PROJECT_FILE
from advprior.store.runs import read_manifest
from ranking.evidence.result import AblationResult
from tests.ranking.frames import write_frame


@pytest.fixture
def project(tmp_path, monkeypatch):
    lay_out(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def edit(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def shown(*words):
    result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_arms_of_a_project_are_the_defaults_here_below_and_by_path(project, monkeypatch):
    def fewer(content):
        content["arms"] = [arm for arm in content["arms"] if arm["name"] in ("baseline", "neighbours")]
        content["ranker"]["num_leaves"] = 7

    edit(project / ARMS_FILE, fewer)
    assert "arms: configs/arms.yaml" in shown("rank", "arms")
    monkeypatch.chdir(project / "feature_repo")
    output = shown("rank", "arms")
    assert "num_leaves 7" in output
    assert "popularity" not in output
    monkeypatch.chdir(project.parent)
    assert "num_leaves" not in shown("rank", "arms")  # no project here
    other = project.parent / "other.yaml"
    shutil.copy(project / ARMS_FILE, other)
    monkeypatch.chdir(project)
    assert "arms: configs" not in shown("rank", "arms", "--arms", other)


def test_an_ablation_takes_arms_ranker_and_seeds_of_the_project_that_its_frame_lies_in(project, monkeypatch):
    write_frame(project / "frame", users=40, slates=6)
    edit(project / ARMS_FILE, lambda content: content["ranker"].update(max_rounds=3))
    ranker = {"num_leaves": 4, "min_data_in_leaf": 5}
    edit(project / PROJECT_FILE, lambda content: content.update(arms={"seeds": 1, "replicates": 20, "ranker": ranker}))
    monkeypatch.chdir(project.parent)
    out = project.parent / "ablation"
    output = shown("rank", "ablate", "--frame", "mine/frame", "--out", out)
    assert "arms: mine/configs/arms.yaml and mine/advprior.yaml (ranker: num_leaves, min_data_in_leaf)" in output
    assert "seeds: 1, of mine/advprior.yaml" in output
    config = read_manifest(out)["config"]
    assert (config["seeds"], config["replicates"]) == (1, 20)
    assert {name: config["arms"]["ranker"][name] for name in ("max_rounds", "num_leaves")} == {
        "max_rounds": 3,
        "num_leaves": 4,
    }
    assert AblationResult.load(out).metric.name == "conversions_3"  # of slates of ten ads a third
    edit(project / PROJECT_FILE, lambda content: content.update(decide_on="auc"))
    again = shown("rank", "ablate", "--frame", "mine/frame", "--out", out, "--seeds", "2")
    assert "decide_on: auc, of mine/advprior.yaml" in again
    assert AblationResult.load(out).metric.name == "auc"
    assert "seeds: 1" not in again
    assert read_manifest(out)["config"]["seeds"] == 2
    edit(project / PROJECT_FILE, lambda content: content.update(price={"cpu_hour": 0.05, "currency": "EUR"}))
    told = shown("rank", "report", out, "--out", project / "report")
    assert "price: cpu_hour 0.05, currency EUR, of mine" in told
    assert read_manifest(project / "report")["config"]["price"] == {"cpu_hour": 0.05, "currency": "EUR"}
    edit(project / PROJECT_FILE, lambda content: content.update(price={"cpu_hour": -1}, decide_on="clicks"))
    for words, key in ((("ablate", "--frame", "mine/frame"), "decide_on"), (("report", out), "price")):
        with pytest.raises(AdvpriorError, match=rf"CFG002(.|\n)*advprior.yaml: {key}"):
            shown("rank", *words, "--out", project / "none")


def test_shares_of_users_are_measured_beside_the_ablation(project):
    write_frame(project / "frame", users=40, slates=6)
    fast = {"max_rounds": 3, "num_leaves": 4, "min_data_in_leaf": 5}
    edit(project / ARMS_FILE, lambda content: content["ranker"].update(fast))
    few = ("--frame", "frame", "--out", "ablation", "--seeds", "1", "--replicates", "20")
    output = shown("rank", "ablate", *few, "--user-shares", "0.5,1")
    assert "overall: llm − baseline, auc" in output
    rows = json.loads((project / "ablation/user_shares.json").read_text())["curve"]
    assert {row["share"] for row in rows} == {0.5, 1.0}
    assert {"best control", "baseline"} <= {row["baseline"] for row in rows}
    shown("rank", "report", "ablation", "--out", "report")
    page = (project / "report/report.html").read_text()
    half = next(row for row in rows if row["share"] == 0.5)
    assert f"<td>{half['users']} (50 %)</td>" in page
    assert page.count(" over the best control (") >= len({row["share"] for row in rows})
    with pytest.raises(AdvpriorError, match="--user-shares"):
        shown("rank", "ablate", *few, "--user-shares", "10%")


def test_a_wrong_setting_of_the_ranker_in_the_project_file_is_named_there(project):
    edit(project / PROJECT_FILE, lambda content: content.update(arms={"ranker": {"num_leaves": 1}}))
    with pytest.raises(AdvpriorError, match=r"CFG001(.|\n)*advprior.yaml: arms.ranker(.|\n)*num_leaves"):
        shown("rank", "arms")
