"""The whole chain on a user's own tables: the demo's commands, a tiny random LLM, every figure checked.

One run serves all checks. What the LLM says is noise here; that it travels unchanged from the network to
the ranker and to the online store is not.
"""

from __future__ import annotations

import html
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from advprior.pipeline.demo import PREDICTED, RECORD, run_demo
from advprior.pipeline.project import lay_out
from advprior.store.contract import (
    BASELINE_SERVICE,
    MATRIX_FILE,
    PLACEBO,
    TABLE_FILE,
    TABLES,
    prior_service,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import MANIFEST, new_run, read_manifest
from tests.tiny import PLAN, tiny_tables
from tests.tiny_llm import write_tiny_llm

PUBLISHED = (*PREDICTED, PLACEBO, "placebo_text_pair")
TRAINING_STACK = ["torch", "transformers", "optimum", "accelerate", "onnx", "gguf", "safetensors"]
pytestmark = pytest.mark.timeout(900)


@dataclass
class Chain:
    """A finished demo over the tiny tables."""

    workspace: Path
    build: tuple[str, ...]
    record: dict

    @property
    def repo(self) -> Path:
        return self.workspace / "feature_repo"

    def again(self) -> dict:
        return run_demo(self.workspace, "40", 0, build=self.build)

    def manifests(self) -> dict[str, bytes]:
        found = [*self.workspace.rglob(MANIFEST)]
        return {str(path.relative_to(self.workspace)): path.read_bytes() for path in found}


def edit_config(workspace: Path, name: str, **changes) -> None:
    path = workspace / "configs" / name
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config))


def write_raw(folder: Path) -> Path:
    """The tiny tables as a user has them: other column names, split by a mapping; returns the mapping's path."""
    folder.mkdir()
    tables = tiny_tables()
    tables["users"] = tables["users"].rename(
        columns={"user_id": "member", "profile_age": "age", "profile_region": "region"}
    )
    tables["impressions"] = tables["impressions"].rename(columns={"timestamp": "shown_at", "context_placement": "slot"})
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    mapping = {
        "folder": ".",
        "tables": {
            "users": {
                "file": "users.parquet",
                "columns": {"user_id": "member"},
                "profile": {"age": "age", "region": "region"},
            },
            "advertisers": {"file": "advertisers.parquet"},
            "ads": {"file": "ads.parquet"},
            "events": {"file": "events.parquet"},
            "impressions": {
                "file": "impressions.parquet",
                "columns": {"impression_id": "impression_id", "timestamp": "shown_at"},
                "context": {"placement": "slot"},
            },
        },
        "time_plan": {
            "start": PLAN.start.isoformat(),
            "finetune_end": PLAN.finetune_end.isoformat(),
            "train_end": PLAN.train_end.isoformat(),
            "valid_end": PLAN.valid_end.isoformat(),
            "end": PLAN.end.isoformat(),
        },
    }
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return folder / "mapping.yaml"


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    workspace = folder / "project"
    lay_out(workspace)
    mapping = write_raw(folder / "raw")
    base = write_tiny_llm(folder / "base")
    edit_config(
        workspace,
        "llm.yaml",
        base=str(base),
        layers=3,
        tuned_layers=1,
        training={"epochs": 1, "rank": 4},
        interests={"weight": 0.2},
    )
    edit_config(workspace, "text.yaml", base=str(base), layers=2, components=4)
    edit_config(workspace, "arms.yaml", ranker={"max_rounds": 20, "patience": 5, "min_data_in_leaf": 5, "threads": 1})
    build = ("data", "check", "--mapping", str(mapping), "--out", str(workspace / "tables"))
    return Chain(workspace, build, run_demo(workspace, "40", 0, build=build))


def test_every_step_did_its_work_and_the_verdict_is_there(chain):
    record = json.loads((chain.workspace / RECORD).read_text())
    assert record == chain.record
    assert [step["name"] for step in record["steps"] if step["reused"]] == ["init"]  # laid out by the fixture
    assert record["verdict"]
    assert 50 < record["peak_memory_mb"] < 6000
    report = Path(record["report"])
    assert report.suffix == ".html"
    assert record["verdict"].partition(":")[0] in html.unescape(report.read_text())


@pytest.mark.parametrize("predictor", PUBLISHED)
def test_priors_are_distributions(chain, predictor):
    view = chain.repo / "data" / prior_view(predictor)
    log_probs = np.load(view / MATRIX_FILE)
    table = pd.read_parquet(view / TABLE_FILE)
    users, snapshots = 40, len(PLAN.snapshots())
    source = chain.workspace / ("tables_pair" if predictor.endswith("_pair") else "tables")
    catalog = pd.read_parquet(source / "advertisers.parquet")
    assert log_probs.shape == (users * snapshots, len(catalog))
    assert len(catalog) > 12 if predictor.endswith("_pair") else len(catalog) == 12
    np.testing.assert_allclose(np.exp(log_probs.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)
    assert len(table) == len(log_probs)
    assert (table["model_cutoff"] <= pd.Timestamp(PLAN.finetune_end)).all()
    assert (table["event_timestamp"] == table["snapshot"] + PLAN.lag).all()


def test_frame_has_every_impression_after_the_cutoff_once(chain):
    frame = pd.read_parquet(chain.workspace / "frame" / "frame.parquet")
    shown = pd.read_parquet(chain.workspace / "tables" / "impressions.parquet")
    expected = shown.loc[shown["timestamp"] >= PLAN.finetune_end, "impression_id"]
    assert sorted(frame["impression_id"]) == sorted(expected)


def test_interests_reach_the_ranker(chain):
    """Of the LLM and its placebo alone, and different for the two."""
    frame = pd.read_parquet(chain.workspace / "frame" / "frame.parquet")
    assert {c for c in frame if "interest" in c} == {"prior_llm_interest_log_prob", "prior_placebo_interest_log_prob"}
    there = frame.prior_llm_interest_log_prob.notna()
    assert (there == frame.prior_llm_log_prob.notna()).all()
    assert (frame.prior_llm_interest_log_prob[there] < 0).all()
    assert (frame.prior_llm_interest_log_prob != frame.prior_placebo_interest_log_prob).mean() > 0.5


def test_second_run_reuses_everything(chain):
    before = chain.manifests()
    record = chain.again()
    redone = [step["name"] for step in record["steps"] if not step["reused"]]
    assert redone == []
    assert chain.manifests() == before
    assert record["seconds"] < 60
    assert record["verdict"] == chain.record["verdict"]
    # what each step cost when it worked is remembered
    made = {step["name"]: step["made_seconds"] for step in record["steps"]}
    assert made["feast apply"] == chain.record["steps"][[*made].index("feast apply")]["seconds"] > 0


@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")  # ibis 12 on duckdb 2
@pytest.mark.parametrize("service", [BASELINE_SERVICE, *map(prior_service, PUBLISHED)])
def test_online_read_equals_offline(chain, service):
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(chain.repo))
    users = [f"u{i:03d}" for i in (0, 7, 39)]
    ads = [f"a{i:02d}/{category}" for i, category in ((0, "Tea"), (1, "Coffee"), (2, "Bread"))]
    rows = [{"user_id": user, "ad_id": ad} for user, ad in zip(users, ads, strict=True)]
    online = store.get_online_features(
        store.get_feature_service(service), entity_rows=rows, full_feature_names=True
    ).to_df()
    now = PLAN.snapshots()[-1] + PLAN.lag
    offline = store.get_historical_features(
        pd.DataFrame(rows).assign(event_timestamp=pd.Timestamp(now)),
        store.get_feature_service(service),
        full_feature_names=True,
    ).to_df()
    online, offline = (t.set_index("user_id").loc[users] for t in (online, offline))
    columns = [c for c in online.columns if c != "ad_id"]
    assert columns
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
    tables = str(chain.workspace / "tables")
    for arguments in (
        ["score", str(chain.workspace / "models" / "llm"), "--tables", tables, "--out", str(priors)],
        ["publish", str(priors), "--repo", str(repo)],
    ):
        done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    here = np.load(repo / "data" / "prior_llm" / MATRIX_FILE)
    np.testing.assert_array_equal(here, np.load(chain.repo / "data" / "prior_llm" / MATRIX_FILE))


def test_a_failing_step_stops_the_demo_and_keeps_what_was_there(chain, capfd):
    before, record = chain.manifests(), (chain.workspace / RECORD).read_bytes()
    config = chain.workspace / "configs" / "llm.yaml"
    text = config.read_text()
    try:
        config.write_text(text + "\nno_such_setting: 1\n")
        with pytest.raises(AdvpriorError) as caught:
            chain.again()
    finally:
        config.write_text(text)
    assert caught.value.code == "RUN010"
    assert caught.value.exit_code == 2
    assert "finetune llm" in caught.value.what
    assert str(caught.value.where).startswith("advprior finetune ")
    shown = capfd.readouterr()
    assert "no_such_setting" in shown.err
    assert "Traceback" not in shown.err
    assert chain.manifests() == before
    assert (chain.workspace / RECORD).read_bytes() == record


def test_a_demo_that_is_killed_takes_its_step_along(chain):
    config = chain.workspace / "configs" / "llm.yaml"
    text = config.read_text()
    edit_config(chain.workspace, "llm.yaml", training={"epochs": 500})
    demo = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from advprior.pipeline.demo import run_demo; "
            f"run_demo(Path({str(chain.workspace)!r}), '40', 0, build={chain.build!r})",
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        partial = chain.workspace / "models" / ".llm.partial"
        wait_until(partial.exists)
        again_out = chain.workspace / "models" / "llm"
        again = ["finetune", "--tables", str(chain.workspace / "tables"), "--out", str(again_out)]
        second = subprocess.run(
            [sys.executable, "-m", "advprior", *again, "--config", str(config)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 2
        assert second.stderr.startswith("error RUN005")
        demo.terminate()
        assert demo.wait(timeout=60) == 143
        # the step has let go of its folder, or this would be RUN005 again
        with pytest.raises(ZeroDivisionError), new_run(again_out, "test", config={}, inputs={}, key="other"):
            1 / 0  # noqa: B018
    finally:
        demo.kill()
        config.write_text(text)


def wait_until(there, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_a_changed_config_redoes_what_depends_on_it_only(chain):
    edit_config(chain.workspace, "arms.yaml", ranker={"max_rounds": 15})
    record = chain.again()
    redone = {step["name"] for step in record["steps"] if not step["reused"]}
    always, perhaps = {"rank ablate", "rank report"}, {"rank two-by-two", "rank train", "rank train baseline"}
    assert always <= redone <= always | perhaps


def test_tables_came_through_the_mapping_unchanged(chain):
    for name in TABLES:
        here = pd.read_parquet(chain.workspace / "tables" / f"{name}.parquet")
        assert len(here) == len(tiny_tables()[name]), name
    assert read_manifest(chain.workspace / "tables", step="data")["facts"]["time_plan"] == PLAN.to_json()
