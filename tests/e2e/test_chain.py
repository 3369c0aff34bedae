"""From a user's own tables to a verdict in three commands, every figure checked.

One run serves all checks. What the LLM says is noise here; that it travels unchanged from the network to
the ranker and to the online store is not.
"""

from __future__ import annotations

import html
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from advprior.pipeline.outlook import status_rows
from advprior.pipeline.plan import make_plan
from advprior.pipeline.project import lay_out
from advprior.pipeline.runner import RunOptions, run, stamps_of
from advprior.pipeline.settings import read_project
from advprior.pipeline.steps import state_of
from advprior.store.contract import (
    BASELINE_SERVICE,
    LLM,
    MATRIX_FILE,
    TABLE_FILE,
    TABLES,
    TimePlan,
    prior_service,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import open_matrix
from advprior.store.runs import MANIFEST, new_run, read_manifest
from ranking.frame.join import open_store
from tests.e2e.conftest import Chain, advprior
from tests.e2e.shop import USERS, shop_tables

PUBLISHED = ("popularity", "neighbours_pair", "text_pair", "placebo_text_pair", "llm", "placebo")
TRAINING_STACK = ["torch", "transformers", "optimum", "accelerate", "onnx", "gguf", "safetensors"]
pytestmark = pytest.mark.timeout(1800)


def times(chain: Chain) -> TimePlan:
    return TimePlan.from_json(read_manifest(chain.folder / "tables")["facts"]["time_plan"])


def manifests(chain: Chain) -> dict[str, bytes]:
    return {str(path.relative_to(chain.folder)): path.read_bytes() for path in chain.folder.rglob(MANIFEST)}


def states(chain: Chain) -> dict[str, str]:
    return {step.name: state for step, state, _, _ in status_rows(read_project(chain.folder))}


def test_three_commands_end_in_a_verdict(chain):
    verdict = read_manifest(chain.folder / "report")["facts"]["verdict"]
    assert verdict in chain.ran
    page = (chain.folder / "report" / "report.html").read_text()
    assert verdict.partition(":")[0] in html.unescape(page)
    assert "without an LLM: No treatment is among the arms, so this is what controls give" in chain.ran
    assert chain.ran.index("without an LLM") < chain.ran.index("] finetune llm")


def test_the_time_plan_is_proposed_from_the_data_and_printed(chain):
    plan = times(chain)
    assert "time plan, proposed" in chain.checked
    assert f"{plan.train_end:%Y-%m-%d}" in chain.checked
    settings = yaml.safe_load((chain.folder / ".advprior" / "settings" / "llm.yaml").read_text())
    days = (plan.finetune_end - plan.start).days
    assert settings["horizon_days"] <= days / 9
    assert settings["training"]["valid_days"] <= days / 4
    assert settings["training"]["epochs"] == 1  # what the project file says stands beside it


def test_what_is_printed_has_no_chatter_of_feast_and_no_colours(chain):
    assert "\x1b" not in chain.ran
    for word in ("DeprecationWarning", "Created feature view", "Materializing"):
        assert word not in chain.ran
    log = (chain.folder / ".advprior" / "logs" / "feast-apply.log").read_text()
    assert "Created feature view prior_llm" in log


@pytest.mark.parametrize("predictor", PUBLISHED)
def test_priors_are_distributions(chain, predictor):
    plan = times(chain)
    view = chain.repo / "data" / prior_view(predictor)
    log_probs = open_matrix(view / MATRIX_FILE)[:]
    table = pd.read_parquet(view / TABLE_FILE)
    source = chain.folder / ("tables_pair" if predictor.endswith("_pair") else "tables")
    catalog = pd.read_parquet(source / "advertisers.parquet")
    assert log_probs.shape == (USERS * len(plan.snapshots()), len(catalog))
    assert len(catalog) > 12 if predictor.endswith("_pair") else len(catalog) == 12
    np.testing.assert_allclose(np.exp(log_probs.astype(np.float64)).sum(axis=1), 1.0, rtol=1e-4)
    assert len(table) == len(log_probs)
    assert (table["model_cutoff"] <= pd.Timestamp(plan.finetune_end)).all()
    assert (table["event_timestamp"] == table["snapshot"] + plan.lag).all()


def test_frame_has_every_impression_after_the_cutoff_once_and_no_catalog_is_warned_about(chain):
    frame = pd.read_parquet(chain.folder / "frame" / "frame.parquet")
    shown = pd.read_parquet(chain.folder / "tables" / "impressions.parquet")
    expected = shown.loc[shown["timestamp"] >= times(chain).finetune_end, "impression_id"]
    assert sorted(frame["impression_id"]) == sorted(expected)
    # priors by advertiser and by advertiser × category stand side by side
    assert "RNK013" not in {w["code"] for w in read_manifest(chain.folder / "frame")["facts"]["warnings"]}


def test_interests_reach_the_ranker(chain):
    """Of the LLM and its placebo alone, and different for the two."""
    frame = pd.read_parquet(chain.folder / "frame" / "frame.parquet")
    assert {c for c in frame if "interest" in c} == {"prior_llm_interest_log_prob", "prior_placebo_interest_log_prob"}
    present = frame.prior_llm_interest_log_prob.notna()
    assert (present == frame.prior_llm_log_prob.notna()).all()
    assert (frame.prior_llm_interest_log_prob[present] < 0).all()
    assert (frame.prior_llm_interest_log_prob != frame.prior_placebo_interest_log_prob).mean() > 0.5


def test_second_run_starts_no_command(chain):
    before = manifests(chain)
    again = advprior("run", cwd=chain.folder)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert "$ " not in again.stdout
    assert read_manifest(chain.folder / "report")["facts"]["verdict"] in again.stdout
    assert manifests(chain) == before


def test_status_says_what_each_step_cost(chain):
    shown = advprior("status", cwd=chain.folder)
    assert shown.returncode == 0, shown.stderr
    count = len(make_plan(read_project(chain.folder)).steps)
    assert f"{count} of {count} steps are current" in shown.stdout
    stamps = stamps_of(read_project(chain.folder))
    for step in make_plan(read_project(chain.folder)).steps:
        cost = stamps.cost(step)
        assert cost is not None, step.name
        assert cost.seconds > 0, step.name  # processor time and memory: tests of the runner, whose steps are no forks


def test_only_what_is_served_is_online(chain):
    with sqlite3.connect(chain.repo / "data" / "online_store.db") as online:
        views = [name for (name,) in online.execute("select name from sqlite_master where type = 'table'")]
        filled = {name for name in views if online.execute(f'select count(*) from "{name}"').fetchone()[0]}
    served = {"user_profile", "user_history", "ad_stats", prior_view(LLM)}
    assert filled == {f"advprior_{view}" for view in served}


@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")  # ibis 12 on duckdb 2
@pytest.mark.parametrize("service", [BASELINE_SERVICE, prior_service(LLM)])
def test_online_read_equals_offline(chain, service):
    store = open_store(chain.repo)
    plan = times(chain)
    users, ads = ["7000", "7007", "7039"], ["10", "15", "33"]
    rows = [{"user_id": user, "ad_id": ad} for user, ad in zip(users, ads, strict=True)]
    online = store.get_online_features(
        store.get_feature_service(service), entity_rows=rows, full_feature_names=True
    ).to_df()
    now = plan.snapshots()[-1] + plan.lag
    offline = store.get_historical_features(
        pd.DataFrame(rows).assign(event_timestamp=pd.Timestamp(now)),
        store.get_feature_service(service),
        full_feature_names=True,
    ).to_df()
    online, offline = (t.set_index("user_id").loc[users] for t in (online, offline))
    columns = [c for c in online.columns if c != "ad_id"]
    assert columns
    assert online[[c for c in columns if c.startswith("ad_stats")]].notna().any(axis=None)
    for column in columns:
        for user in users:
            left, right = online.loc[user, column], offline.loc[user, column]
            if isinstance(left, (list, np.ndarray)):
                np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=column)
            elif pd.isna(left) or pd.isna(right):
                assert pd.isna(left), column
                assert pd.isna(right), column
            elif isinstance(right, pd.Timestamp):
                assert pd.Timestamp(left).tz_localize(None) == right.tz_localize(None), column
            else:
                assert left == right, column


def test_scoring_and_publishing_need_no_training_stack(chain, tmp_path):
    """In an image without torch: the modules are made impossible to import, then the real commands run."""
    probe = (
        f"import sys\nsys.modules.update(dict.fromkeys({TRAINING_STACK}))\n"
        "from advprior.cli import main\nmain(sys.argv[1:])"
    )
    lay_out(tmp_path)
    repo, priors = tmp_path / "feature_repo", tmp_path / "priors"
    for arguments in (
        ["score", str(chain.folder / "models/llm"), "--tables", str(chain.folder / "tables"), "--out", str(priors)],
        ["publish", str(priors), "--repo", str(repo)],
    ):
        done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    here = open_matrix(repo / "data" / "prior_llm" / MATRIX_FILE)[:]
    largest = np.abs(here).max()
    np.testing.assert_allclose(
        here, open_matrix(chain.repo / "data/prior_llm" / MATRIX_FILE)[:], rtol=0, atol=1e-5 * largest
    )


def test_a_failing_step_stops_the_run_and_keeps_what_was_there(chain, capfd):
    before, steps = manifests(chain), (chain.folder / ".advprior" / "steps.json").read_bytes()
    arms = chain.folder / "advprior.yaml"
    text = arms.read_text()
    try:
        arms.write_text(text.replace("threads: 1", "threads: 1\n    no_such_setting: 1"))
        with pytest.raises(AdvpriorError) as caught:
            run(read_project(chain.folder))
    finally:
        arms.write_text(text)
        (chain.folder / ".advprior" / "steps.json").write_bytes(steps)
    assert caught.value.code == "RUN010"
    assert caught.value.exit_code == 2
    assert "rank ablate" in caught.value.what
    assert str(caught.value.where).startswith("advprior rank ablate ")
    shown = capfd.readouterr()
    assert "no_such_setting" in shown.err
    assert "Traceback" not in shown.err
    assert manifests(chain) == before


def test_a_run_that_is_killed_takes_its_step_along(chain):
    project = chain.folder / "advprior.yaml"
    text, steps = project.read_text(), (chain.folder / ".advprior" / "steps.json").read_bytes()
    project.write_text(text.replace("epochs: 1", "epochs: 500"))
    command = [sys.executable, "-m", "advprior", "run"]
    whole = subprocess.Popen(command, cwd=chain.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until((chain.folder / "models" / ".llm.partial").exists)
        settings = (".advprior/settings/llm.yaml", "--out", "models/llm")
        second = advprior("finetune", "--tables", "tables", "--config", *settings, cwd=chain.folder)
        assert second.returncode == 2
        assert second.stderr.startswith("error RUN005")
        whole.terminate()
        assert whole.wait(timeout=300) == 143
        # the step has let go of its folder, or this would be RUN005 again
        with pytest.raises(ZeroDivisionError), new_run(chain.folder / "models/llm", "x", config={}, inputs={}, key="x"):
            1 / 0  # noqa: B018
        assert states(chain)["finetune llm"] == "stale"  # the old model is there, and is not what is asked for
    finally:
        whole.kill()
        project.write_text(text)
        (chain.folder / ".advprior" / "steps.json").write_bytes(steps)


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_a_changed_setting_makes_stale_what_depends_on_it_only(chain):
    project = chain.folder / "advprior.yaml"
    text = project.read_text()
    project.write_text(text.replace("max_rounds: 20", "max_rounds: 15"))
    try:
        stale = {name for name, state in states(chain).items() if state != "current"}
    finally:
        project.write_text(text)
    assert stale == {
        "first rank ablate",
        "rank ablate",
        "rank two-by-two",
        "rank train",
        "rank train baseline",
        "rank report",
    }


def test_another_prior_is_served_without_measuring_again(chain):
    """Which view is online is no part of what was measured: publish, apply and materialize follow, no more."""
    project = chain.folder / "advprior.yaml"
    text = project.read_text()
    project.write_text(text.replace("serve: llm", "serve: text_pair"))
    try:
        ran = [run(read_project(chain.folder), RunOptions(until=f"publish {name}")).ran for name in ("text_pair", LLM)]
        assert ran == [["publish text_pair"], ["publish llm"]]
        facts = {name: read_manifest(chain.repo / "data" / prior_view(name))["facts"] for name in ("text_pair", LLM)}
        assert (facts["text_pair"]["online"], facts[LLM]["online"]) == (True, False)
        served = read_project(chain.folder)
        plan, stamps = make_plan(served), stamps_of(served)
        own = {step.name: state_of(chain.folder, plan, step, stamps)[0] for step in plan.steps}
        assert {name for name, state in own.items() if state != "current"} == {
            "feast apply",
            "rank ablate",  # the verdict is on another arm
            "rank two-by-two",
            "rank train",
            "rank train baseline",  # reads the same file of arms
            "rank report",
            "feast materialize",
        }
    finally:
        project.write_text(text)
        for name in ("text_pair", LLM):
            run(read_project(chain.folder), RunOptions(until=f"publish {name}"))


def test_tables_came_through_the_mapping_unchanged(chain):
    own = shop_tables()
    for name in TABLES:
        assert len(pd.read_parquet(chain.folder / "tables" / f"{name}.parquet")) == len(own[name]), name
    assert json.loads((chain.folder / "tables" / MANIFEST).read_text())["facts"]["time_plan_proposed"] is True
    users = pd.read_parquet(chain.folder / "tables" / "users.parquet")
    assert users["user_id"].iloc[0] == "7000"  # whole numbers are ids as text


def test_folders_with_the_names_of_our_packages_are_not_in_the_way(chain):
    assert Path(chain.folder / "ranking" / "__init__.py").is_file()
    assert advprior("rank", "report", "--help", cwd=chain.folder).returncode == 0
