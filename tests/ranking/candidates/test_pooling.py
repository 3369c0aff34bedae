"""Two-by-twos of several cut-offs as one: what the bootstrap over all their rows gives, each cut-off's own choices."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.store.errors import AdvpriorError
from advprior.store.runs import new_run
from ranking.candidates.cells import BOTH, CELLS, EFFECTS, NEITHER, cells_of, effects_of, effects_of_sums
from ranking.candidates.endtoend import STEP, TwoByTwo
from ranking.candidates.pooling import pool
from ranking.candidates.section import retrieval_section, steps_of
from ranking.candidates.sums import CellSums, sums_of
from ranking.cli import rank
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.metrics import Conversions, Ndcg

METRICS = (Conversions(2), Ndcg(2))
ARMS = ("text", "neighbours", "popularity", "placebo")
LABELS = {"text": "text prior", "neighbours": "neighbour prior (of users)", "popularity": "popularity prior"}


def drawn(seed, users=12, seeds=2, gain=0.0):
    """Rows of one cut-off with plain scores, candidates of the towers alone, and every arm's."""
    rng = np.random.default_rng(seed)
    user = np.repeat(rng.choice(40, users, replace=False), 12)
    slate = np.arange(len(user)) // 4
    label = (rng.random(len(user)) < 0.3).astype(np.int8)
    scores = lambda own: [np.round(rng.random(len(user)) + own * label, 1) for _ in range(seeds)]  # noqa: E731
    priors = {arm: (scores(gain * (arm == "text")), rng.random(len(user)) < 0.7) for arm in ARMS}
    return np.char.mod("u%02d", user), slate, label, scores(0.0), rng.random(len(user)) < 0.7, priors


def sums_at(rows):
    user, slate, label, plain, alone, priors = rows
    outcomes = Outcomes.of(label, user, slate=slate)
    return sums_of(cells_of(plain, alone, priors), outcomes, np.unique(user), METRICS)[0]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), cutoffs=st.integers(1, 3))
def test_sums_of_users_are_resampled_as_the_rows_are(seed, cutoffs):
    """An effect of the sums is that of the scores of all cut-offs, as the ablation's bootstrap takes it."""
    parts = [drawn(seed + i) for i in range(cutoffs)]
    options = Resampling(METRICS, replicates=40)
    pooled = effects_of_sums([sums_at(part) for part in parts], ARMS, options, {"text": ARMS[1:]})
    at = np.repeat(np.arange(cutoffs), [len(part[0]) for part in parts])
    user, label = (np.concatenate([part[i] for part in parts]) for i in (0, 2))
    slate = np.concatenate([part[1] + 1000 * i for i, part in enumerate(parts)])
    outcomes = Outcomes.of(label, user, slate=slate, cutoff=at)
    of_cells = [cells_of(*part[3:]) for part in parts]
    scores = {
        name: [
            np.concatenate([np.where(cells[name][1], cells[name][0][s], -1.0) for cells in of_cells]) for s in range(2)
        ]
        for name in of_cells[0]
    }
    plain = paired_bootstrap(scores, outcomes, [(name, NEITHER) for name in scores if name != NEITHER], options)
    for lift in plain:
        own = pooled.get(lift.arm, NEITHER, lift.metric)
        for field in ("value", "difference", "low", "high", "error", "freedom"):
            assert getattr(own, field) == pytest.approx(getattr(lift, field), rel=1e-9, abs=1e-12), field
        assert own.by_cutoff == pytest.approx(lift.by_cutoff, abs=1e-12)
        assert len(own.by_cutoff) == cutoffs


def written(folder, seed, control="neighbours", gain=0.0, **about):
    """A finished two-by-two with that best control."""
    rows = drawn(seed, gain=gain)
    user, slate, label, plain, alone, priors = rows
    references = {"control": control, "placebo": "placebo"}
    lifts = effects_of(
        plain,
        alone,
        priors,
        Outcomes.of(label, user, slate=slate),
        Resampling(METRICS, replicates=40),
        {"text": [control, "placebo"]},
    )
    facts = {
        "k": 3,
        "slots": 2,
        "quota": 0.1 * (seed + 1),
        "arm": "text",
        "baseline": "baseline",
        "treatments": ["text"],
        "references": {"text": dict.fromkeys(CELLS, references)},
        "quotas": dict.fromkeys(ARMS, 0.1),
        "slates": len(np.unique(slate)),
        "users": len(np.unique(user)),
        "positives": int(label.sum()),
        "among_candidates": {"alone": int(label[alone].sum()), "augmented": int(label[priors["text"][1]].sum())},
        "labels": LABELS,
        "gaps": {},
        "decide_on": "conversions_2",
        "test": f"2024-0{seed + 1}-01T00:00:00+00:00 to 2024-0{seed + 2}-01T00:00:00+00:00",
    }
    with new_run(folder, STEP, config={}, inputs={}, key=str((seed, control, about))) as run:
        TwoByTwo(lifts, facts | about, sums_at(rows)).save(run.path)
    return folder


def test_what_is_pooled_leads_and_each_cut_off_stands_beneath(tmp_path):
    """Whose prior, best control and placebo in the sentence; the control that each cut-off's own validation chose."""
    names = ["neighbours", "popularity", "neighbours"]
    folders = [written(tmp_path / str(i), i, name, gain=0.5) for i, name in enumerate(names)]
    parts = [TwoByTwo.load(folder) for folder in folders]
    command = ["pool", *map(str, folders), "--replicates", "60", "--out", str(tmp_path / "pooled")]
    done = CliRunner().invoke(rank, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = TwoByTwo.load(tmp_path / "pooled")
    first, *rest = done.output.splitlines()
    assert first == result.sentences()[0]
    assert rest[:3] == result.cutoffs
    assert "With text prior in retrieval and in ranking" in first
    assert "best control, that of each cut-off (neighbour prior at 1 and 3; popularity prior at 2)" in first
    assert "its placebo" in first
    for i, (line, part) in enumerate(zip(result.cutoffs, parts, strict=True)):
        assert f"test 2024-0{i + 1}-01 to 2024-0{i + 2}-01" in line
        assert part.effect(BOTH, NEITHER).text() in line
        assert f"best control {part.effect(BOTH, NEITHER, arm=names[i]).text()}" in line
    for name, against, _ in EFFECTS:
        lift = result.effect(name, against)
        assert lift.by_cutoff == pytest.approx([part.effect(name, against).difference for part in parts])
        assert lift.error < max(part.effect(name, against).error for part in parts)
        control = result.references("text", name)["control"]
        over = [part.over(name, against, own).difference for part, own in zip(parts, names, strict=True)]
        assert result.over(name, against, control).by_cutoff == pytest.approx(over)
    assert result.about["slates"] == sum(part.about["slates"] for part in parts)
    steps = steps_of(result)
    assert steps.cutoffs == tuple(result.cutoffs)
    section = retrieval_section(two_by_two=tmp_path / "pooled")
    assert (section["quota"], len(section["cutoffs"])) == ("10 %, 20 %, 30 %", 3)
    again = CliRunner().invoke(rank, command, catch_exceptions=False)
    assert "reused" in again.output


def test_what_does_not_belong_together_is_not_pooled(tmp_path):
    one, other = written(tmp_path / "a", 0), written(tmp_path / "b", 1)
    with new_run(tmp_path / "pooled", STEP, config={}, inputs={}, key="p") as run:
        pool([one, other], replicates=20).save(run.path)
    unlike = [written(tmp_path / "c", 2, k=9), written(tmp_path / "d", 2, arm="neighbours"), tmp_path / "pooled"]
    for folders in ([one], *([one, folder] for folder in unlike)):
        with pytest.raises(AdvpriorError, match="RNK033"):
            pool(folders)
    (other / "users.parquet").unlink()  # of an earlier version
    with pytest.raises(AdvpriorError, match="DAT001"):
        pool([one, other])


def test_sums_are_read_as_they_were_written(tmp_path):
    sums = sums_at(drawn(3))
    sums.save(tmp_path)
    loaded = CellSums.load(tmp_path)
    assert (loaded.columns, loaded.users.tolist(), loaded.seeds) == (sums.columns, sums.users.tolist(), 2)
    assert (loaded.totals == sums.totals).all()
    assert (loaded.engaged == sums.engaged).all()
    assert json.dumps(list(loaded.slates)) == json.dumps([metric.name for metric in METRICS])
