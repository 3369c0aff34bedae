"""The report is one self-contained page that says what the numbers say; the commands end with the same words."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from advprior.store.errors import AdvpriorError
from advprior.store.runs import new_run, run_key
from ranking.candidates.cells import BOTH, CELLS, EFFECTS, NEITHER, RANKING, RETRIEVAL, cell
from ranking.candidates.curve import _COLUMNS, CandidateCurve
from ranking.candidates.endtoend import TwoByTwo
from ranking.cli import rank
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.metrics import Conversions, Ndcg
from ranking.evidence.plots import calibration, importance, svg_uri
from ranking.evidence.result import AblationResult, load_seeds
from ranking.evidence.wording import signed
from ranking.models.arms import load_arms
from ranking.models.ranker import Ranker
from tests.ranking.frames import synthetic_frame, write_frame

STEPS = ("retrieval", "ranking")


def invoke(*arguments):
    return CliRunner().invoke(rank, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A frame, a fast arms file, and a finished ablation."""
    root = tmp_path_factory.mktemp("rank")
    write_frame(root / "frame", users=120)
    arms = {
        "arms": load_arms().model_dump(mode="json")["arms"],
        "ranker": {
            "max_rounds": 40,
            "num_leaves": 4,
            "threads": 1,
        },  # more of them fit the placebo, and 120 users show it
    }
    (root / "arms.yaml").write_text(yaml.safe_dump(arms))
    done = invoke(
        "ablate",
        "--frame",
        root / "frame",
        "--out",
        root / "ablation",
        "--arms",
        root / "arms.yaml",
        "--replicates",
        100,
        "--seeds",
        2,
    )
    assert done.exit_code == 0, done.output
    return root, done


class Page(HTMLParser):
    """Collects what a browser would fetch, what is left open, and the text."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for key, value in attrs if key in ("src", "href", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_whole_self_contained_and_escaped(workspace, tmp_path):
    root, done = workspace
    with new_run(tmp_path / "llm", "finetune", config={}, inputs={}, key=run_key("finetune", {}, {})) as run:
        run.facts.update(parity=2.5e-5, curve=[{"epoch": 1, "valid": 3.2}], note="<script>")
    with new_run(tmp_path / "priors", "score", config={}, inputs={}, key=run_key("score", {}, {})) as run:
        run.facts.update(predictor="llm", rows=4)
    manifest = json.loads((tmp_path / "priors" / "manifest.json").read_text()) | {"seconds": 9.0, "cpu_seconds": 0.02}
    (tmp_path / "priors" / "manifest.json").write_text(json.dumps(manifest))
    runs = [part for name in ("llm", "priors") for part in ("--predictor-run", tmp_path / name)]
    report = invoke("report", root / "ablation", "--out", tmp_path / "r", *runs)
    assert report.exit_code == 0, report.output
    html = (tmp_path / "r" / "report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.fetched
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.fetched)
    assert "http" not in re.sub(r"base64,[^\"]+", "", html)
    text = " ".join(" ".join(page.text).split())
    verdict = json.loads((root / "ablation" / "ablation.json").read_text())["verdict"]
    assert verdict["sentence"] in text
    names = ["End to end", "Retrieval", "Ranking", "Worth", "What to do"]
    places = [text.index(f" {name} ") for name in names]
    assert places == sorted(places)
    assert places[-1] < text.index("The verdict in full")
    assert "Retrieval was not measured, so this is ranking alone." in text
    assert "(best control, neighbour prior: " in text
    assert "; its placebo: " in text
    # 0.02 s for 4 rows, and 1,200 slates of 120 users (none says how many were scored) in 35 days, refreshed every 7
    assert "conversions per million slates" in text
    assert "for 1.4 CPU-hours per million users at each refresh" in text
    assert "each between two refreshes (every 7 days)" in text
    assert "set price: {cpu_hour: 0.05, currency: USD} in advprior.yaml" in text
    assert html.count("<details>") == html.count("<summary>") >= 6
    assert text.index(verdict["sentence"]) < text.index("What the data is") < text.index("Provenance")
    assert "Simulated <exposure>, inferred from nothing." in text  # escaped in the page, whole to the reader
    assert "<exposure>" not in html
    assert "<script>" not in html
    for words in (
        "+ neighbour prior",
        "LLM priors over neighbour prior",
        "Advertisers new to the user",
        "RNK009",
        "2.5e-05",
        "2024-02-26",
        "Validation",
        "Detectable",
        "Load 10",
        "5,000 s",
        "not recorded",
    ):
        assert words.lower() in text.lower(), words
    assert verdict["sentence"] in done.output
    lines = report.output.splitlines()
    assert lines[-5] == f"verdict: {verdict['sentence']}"
    assert lines[-4].startswith("also:    LLM priors: +")
    assert lines[-3] == "data:    Simulated <exposure>, inferred from nothing"
    assert lines[-2].endswith("report.html")
    assert lines[-1].startswith("next:    advprior ")


def test_candidates_and_the_two_by_two_have_their_sections(workspace, tmp_path):
    root, _ = workspace
    frame = synthetic_frame(users=120).query("split == 'test'")
    label, user, slate = (frame[name].to_numpy() for name in ("label", "user_id", "slate_id"))
    rng = np.random.default_rng(0)
    gains = {NEITHER: 0, RETRIEVAL: 0.2, RANKING: 0.3, BOTH: 0.6}
    gains |= {cell(name, "text_pair"): 1.1 * gains[name] for name in CELLS}
    cells = {name: [rng.random(len(frame)) + add * label for _ in range(2)] for name, add in gains.items()}
    options = Resampling((Conversions(5), Ndcg(5)), replicates=50)
    pairs = [(a, b) for a, b, _ in EFFECTS] + [(cell(name, "text_pair"), NEITHER) for name in CELLS]
    lifts = paired_bootstrap(cells, Outcomes.of(label, user, slate=slate), pairs, options)
    about = {"k": 15, "slots": 5, "quota": 0.3, "arm": "llm", "baseline": "baseline"}
    about |= {"treatments": ["llm", "text_pair"], "labels": {"llm": "LLM priors", "text_pair": "text prior"}}
    with new_run(tmp_path / "two", "rank two-by-two", config={}, inputs={}, key="k") as run:
        TwoByTwo(lifts, about).save(run.path)
    rows = [
        ["llm", split, q, 0.5 + q / 10, q / 10, 0.01 * q, 0.2 * q, 50.0, 9.0 * q, 1.0 * q, 100.0, 0.1 + q, 10.0]
        for split in ("valid", "test")
        for q in (0.0, 0.5)
    ]
    curve = CandidateCurve(pd.DataFrame(rows, columns=_COLUMNS), {"llm": 0.5}, {"k": 20})
    with new_run(tmp_path / "curve", "rank candidates", config={}, inputs={}, key="k") as run:
        curve.save(run.path)
    parts = ("--candidates", tmp_path / "curve", "--two-by-two", tmp_path / "two", "--cpu-hour", "0.05")
    report = invoke("report", root / "ablation", "--out", tmp_path / "r", *parts)
    page = Page()
    html = (tmp_path / "r" / "report.html").read_text()
    page.feed(html)
    assert page.open == []
    text = " ".join(" ".join(page.text).split())
    assert curve.sentence("llm") in text
    assert all(sentence in text for sentence in TwoByTwo(lifts, about).sentences())
    both = lifts.get(BOTH, NEITHER, "conversions_5")
    relative = f"({signed(100 * both.relative, 1)} %)"
    change = f"conversions per slate at 5 ads change by {both.text()} {relative}: a gain; whether a control does"
    lead = f"With LLM priors in retrieval and in ranking, {change} as well was not measured (no control was measured"
    assert lead in text
    assert "End to end, LLM priors: a gain that is not checked in full" in text
    assert f"verdict: {lead}" in report.output
    alone = [line for line in report.output.splitlines() if line.startswith("also:    With LLM priors in")]
    assert [line.split(",")[0] for line in alone[:2]] == [f"also:    With LLM priors in {step} alone" for step in STEPS]
    assert "also:    With text prior in retrieval and in ranking, conversions" in report.output
    assert "Also on trial" in text
    assert "30 % of the slots" in text
    assert f"{lifts.get(BOTH, NEITHER, 'conversions_5').value:.4f}" in text
    assert "Ranking, once in retrieval" in text
    assert len(page.fetched) == 5


def test_worth_is_counted_from_the_predictions(workspace):
    """Conversions at a load and the advertisers they go to, slate by slate, for one seed's arm."""
    root, _ = workspace
    value = AblationResult.load(root / "ablation").value(load=3)
    rows, scores = load_seeds(root / "ablation")
    advertiser = synthetic_frame(users=120).set_index("impression_id")["advertiser_id"].loc[rows["impression_id"]]
    conversions, concentrations = [], []
    for score in scores["llm"]:
        shown = rows[["impression_id", "label"]].assign(chance=0.0)
        for slate in rows.groupby("slate_id").indices.values():
            above = (score[slate][:, None] < score[slate]).sum(axis=1)
            tied = (score[slate][:, None] == score[slate]).sum(axis=1)
            shown.loc[shown.index[slate], "chance"] = np.clip((3 - above) / tied, 0, 1)
        conversions.append((shown["chance"] * shown["label"]).sum() / rows["slate_id"].nunique())
        of_advertiser = shown["chance"].groupby(advertiser.loc[shown["impression_id"]].to_numpy()).sum()
        concentrations.append(((of_advertiser / of_advertiser.sum()) ** 2).sum())
    assert value["conversions"]["llm"] == pytest.approx(np.mean(conversions))
    assert value["hhi"]["llm"] == pytest.approx(np.mean(concentrations))
    assert value["conversions"]["llm"] > value["conversions"]["baseline"]


def test_arms_of_another_ablation_are_taken_over(workspace, tmp_path):
    """With the same settings and seeds nothing is fitted and the verdict is the same; with others all arms are."""
    root, done = workspace
    words = ("ablate", "--frame", root / "frame", "--arms", root / "arms.yaml", "--reuse", root / "ablation")
    again = invoke(*words, "--replicates", 100, "--seeds", 2, "--out", tmp_path / "again")
    assert f"taken from {root / 'ablation'}: baseline, " in again.output
    assert again.output.splitlines()[-2:] == done.output.splitlines()[-2:]
    more = invoke(*words, "--replicates", 100, "--seeds", 1, "--out", tmp_path / "more")
    assert f"taken from {root / 'ablation'}: no arm" in more.output
    with pytest.raises(AdvpriorError, match="RUN001"):
        invoke(*words[:-1], tmp_path / "none", "--out", tmp_path / "other")


def test_an_unchanged_step_is_reused_and_still_says_the_verdict(workspace, tmp_path):
    root, _ = workspace
    again = invoke(
        "ablate",
        "--frame",
        root / "frame",
        "--out",
        root / "ablation",
        "--arms",
        root / "arms.yaml",
        "--replicates",
        100,
        "--seeds",
        2,
    )
    assert "unchanged, reused" in again.output
    first, second = (invoke("report", root / "ablation", "--out", tmp_path / "r") for _ in range(2))
    assert "unchanged, reused" not in first.output
    assert "unchanged, reused" in second.output
    assert first.output.splitlines()[-3:] == second.output.splitlines()[-3:]
    assert (tmp_path / "r" / "report.html").stat().st_size > 20_000


def test_train_saves_a_ranker_for_the_service(workspace, tmp_path):
    root, _ = workspace
    command = (
        "train",
        "--frame",
        root / "frame",
        "--arms",
        root / "arms.yaml",
        "--out",
        tmp_path / "ranker",
        "--service",
    )
    said = invoke(*command, "ranker_with_priors_v1")
    assert said.exit_code == 0, said.output
    assert "ranker_with_priors_v1" in said.output
    ranker = Ranker.load(tmp_path / "ranker")
    assert any(name.startswith("prior_llm_") for name in ranker.names)
    assert not any(name.startswith("prior_neighbours_") for name in ranker.names)
    assert ranker.facts["time_plan"]["finetune_end"]
    assert len(ranker.predict(synthetic_frame(users=5))) == 600
    assert "unchanged, reused" in invoke(*command, "ranker_with_priors_v1").output
    with pytest.raises(AdvpriorError, match=r"RNK021(.|\n)*neighbours"):
        invoke(*command, "ranker_v9")


def test_wrong_folders_are_refused_before_anything_is_written(workspace, tmp_path):
    root, _ = workspace
    with pytest.raises(AdvpriorError, match="RUN003"):
        invoke("report", root / "frame", "--out", tmp_path / "r")
    with pytest.raises(AdvpriorError, match="RUN001"):
        invoke("ablate", "--frame", tmp_path / "none", "--out", tmp_path / "a")
    (root / "truncated").mkdir()
    for name in ("manifest.json", "frame.parquet"):
        (root / "truncated" / name).write_bytes(
            (root / "frame" / name).read_bytes()[: 10**9 if "manifest" in name else 5000]
        )
    with pytest.raises(AdvpriorError, match="DAT002"):
        invoke("ablate", "--frame", root / "truncated", "--out", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_feature_of_a_long_name_leaves_room_for_its_bar():
    long = {f"profile_{'x' * 180}{i}": 0.5 for i in range(2)}
    figure = importance({"profile": 1.0}, long)
    svg_uri(figure)  # draws it; matplotlib would warn that it has no room
    labels = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert [len(label) for label in labels] == [40, 40]
    assert len(figure.axes[1].patches) == 2


def test_a_calibration_without_any_positive_is_an_empty_picture():
    figure = calibration({"baseline": [{"predicted": 0.2, "observed": 0.0}]})
    assert svg_uri(figure).startswith("data:image/svg+xml")
    assert figure.axes[0].get_lines() == []
