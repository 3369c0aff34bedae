"""Running steps: beside each other, up to one of them, again, and within a budget."""

from __future__ import annotations

import json

import pytest
import yaml

from advprior.pipeline.budget import check_budget
from advprior.pipeline.forecast import Forecast
from advprior.pipeline.outlook import check_project, dry_run
from advprior.pipeline.plan import make_plan
from advprior.pipeline.project import PROJECT_FILE, lay_out
from advprior.pipeline.publish import publish
from advprior.pipeline.retention import remove_measured, wanted_again
from advprior.pipeline.runner import RunOptions, run, stamps_of
from advprior.pipeline.score import score
from advprior.pipeline.settings import Disk, read_project
from advprior.store.contract import MATRIX_FILE
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import matrix_path
from advprior.store.runs import is_current, manifest_digest, read_manifest
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Tables that are ready, two cheap priors, no more."""
    folder = tmp_path_factory.mktemp("project")
    lay_out(folder)
    write_tiny(folder / "ready")
    keys = {"tables": {"folder": "ready"}, "priors": ["popularity", "neighbours"], "retrieval": False}
    (folder / PROJECT_FILE).write_text(yaml.safe_dump(keys))
    return read_project(folder)


@pytest.fixture(scope="module")
def scored(project):
    """Both priors fitted and scored, two steps at a time."""
    plan = make_plan(project)
    ran = [run(project, RunOptions(until=f"score {name}", jobs=2)).ran for name in ("popularity", "neighbours")]
    return plan, ran


def test_steps_until_one_run_beside_each_other_and_no_others(project, scored):
    _, (first, second) = scored
    assert set(first) == {"finetune popularity", "export popularity", "score popularity"}
    assert set(second) == {"finetune neighbours", "export neighbours", "score neighbours"}
    assert not (project.folder / "frame").exists()


def test_what_a_step_said_beside_others_is_printed_whole_and_logged(project, scored, capfd):
    run(project, RunOptions(until="score popularity", jobs=2, force=True))
    shown = capfd.readouterr().out
    assert "score popularity on CPUExecutionProvider" in shown
    log = project.folder / ".advprior" / "logs" / "score-popularity.log"
    assert log.read_text().splitlines()[0] in shown


def test_again_nothing_runs_and_costs_are_remembered(project, scored):
    again = run(project, RunOptions(until="score neighbours"))
    assert again.ran == []
    stamps = stamps_of(project)
    steps = [step for step in make_plan(project).steps if step.name.endswith((" popularity", " neighbours"))]
    costs = {step.name: stamps.cost(step) for step in steps if not step.name.startswith("publish")}
    assert len(costs) == 6
    for name, cost in costs.items():
        assert cost.cpu_seconds > 0, name
        assert 20 < cost.memory_mb < 6000, name
    assert "score neighbours" not in "\n".join(dry_run(project, None))


def test_a_lost_output_is_made_again_and_what_reads_it_stays(project, scored):
    (project.folder / "models" / "neighbours" / "onnx" / "manifest.json").unlink()
    for path in (project.folder / "models" / "neighbours" / "onnx").iterdir():
        path.unlink()
    done = run(project, RunOptions(until="score neighbours"))
    assert "export neighbours" in done.ran
    assert "finetune neighbours" in done.current


def test_a_step_that_is_none_is_answered_with_the_nearest(project):
    with pytest.raises(AdvpriorError, match="RUN011") as caught:
        run(project, RunOptions(until="finetune neighbors"))
    assert "did you mean 'finetune neighbours'" in str(caught.value)


def test_a_forecast_above_the_budget_is_refused_before_the_long_steps(project):
    small = project.config.model_copy(update={"budget": project.config.budget.model_copy(update={"minutes": 0.01})})
    plan = make_plan(project)
    forecast = Forecast(project, plan, stamps_of(project))
    with pytest.raises(AdvpriorError, match="RUN012") as caught:
        check_budget(type(project)(project.folder, small), forecast, list(plan.steps))
    assert "minutes against 0.0" in str(caught.value)
    check_budget(project, forecast, list(plan.steps))


def test_a_broken_file_of_stamps_means_that_every_command_is_asked(project, scored):
    path = project.folder / ".advprior" / "steps.json"
    text = path.read_text()
    try:
        path.write_text("{")
        done = run(project, RunOptions(until="export popularity"))
    finally:
        path.write_text(text)
    assert set(done.ran) == {"finetune popularity", "export popularity"}
    assert json.loads(text)


def test_wrong_settings_and_a_missing_repository_are_refused_before_anything_runs(project, tmp_path):
    lay_out(tmp_path)
    (tmp_path / PROJECT_FILE).write_text(
        yaml.safe_dump({"tables": {"folder": "x"}, "priors": [{"name": "llm", "settings": {"epoch": 1}}]})
    )
    with pytest.raises(AdvpriorError, match=r"did you mean training\.epochs"):
        check_project(read_project(tmp_path))
    (tmp_path / "feature_repo" / "feature_store.yaml").unlink()
    with pytest.raises(AdvpriorError, match="STO001"):
        check_project(read_project(tmp_path))


def test_tables_without_impressions_end_in_an_evaluation(project, tmp_path):
    lay_out(tmp_path)
    write_tiny(tmp_path / "ready")
    manifest = tmp_path / "ready" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["facts"]["purpose"] = "predictor"
    manifest.write_text(json.dumps(facts))
    (tmp_path / PROJECT_FILE).write_text(yaml.safe_dump({"tables": {"folder": "ready"}, "priors": ["popularity"]}))
    names = [step.name for step in make_plan(read_project(tmp_path)).steps]
    assert names == ["finetune popularity", "export popularity", "score popularity", "evaluate"]


def test_what_is_measured_only_is_removed_and_scored_again_for_a_new_frame(project, scored):
    """Its arrays go, nothing made of it is stale, and scored again it is what it was."""
    folder, plan = project.folder, make_plan(project)
    repo = folder / "feature_repo"
    assert publish(folder / "priors/popularity", repo, online=False) == "prior_popularity"
    published = folder / "feature_repo/data/prior_popularity"
    folders = (folder / "priors/popularity", published)
    before = [manifest_digest(one) for one in folders]
    key = read_manifest(folders[0])["key"]
    none, small = (project.config.model_copy(update={"disk": Disk(scores_mb=mb)}) for mb in (0, None))
    assert remove_measured(folder, small, plan) == remove_measured(folder, project.config, plan) == 0
    assert remove_measured(folder, none, plan) > 0
    assert all(matrix_path(one / MATRIX_FILE) is None for one in folders)
    assert matrix_path(folder / "priors/neighbours" / MATRIX_FILE), "it is served"
    assert [manifest_digest(one) for one in folders] == before
    assert is_current(folders[0], key, whole=False)
    assert not is_current(folders[0], key)
    assert remove_measured(folder, none, plan) == 0
    every = {step.name: ("current", "") for step in plan.steps}
    assert wanted_again(folder, plan, every, plan.steps) == set()
    new_frame = every | {"rank frame": ("stale", "changed: tables")}
    assert wanted_again(folder, plan, new_frame, plan.steps) == {"score popularity", "publish popularity"}
    assert score(folder / "models/popularity", folder / "ready", folders[0])
    assert publish(folders[0], repo, online=False) == "prior_popularity"
    assert [manifest_digest(one) for one in folders] == before
