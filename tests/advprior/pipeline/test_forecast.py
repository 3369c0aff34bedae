"""What a step will take: by the size of the data, by this machine's speed, by its own last run."""

from __future__ import annotations

import json

import pytest

from advprior.pipeline.budget import forecast_lines
from advprior.pipeline.forecast import Forecast
from advprior.pipeline.plan import make_plan
from advprior.pipeline.settings import Project, ProjectConfig
from advprior.pipeline.steps import Cost, Stamps
from advprior.store.progress import duration
from tests.tiny import write_tiny

MILLION = {"users": 200, "advertisers": 664, "ads": 864, "events": 1_000_000, "impressions": 1_000_000}


@pytest.fixture
def project(tmp_path):
    """A project whose tables say that they hold a million rows."""
    write_tiny(tmp_path / "tables")
    manifest = tmp_path / "tables" / "manifest.json"
    written = json.loads(manifest.read_text())
    written["facts"]["rows"] = MILLION
    manifest.write_text(json.dumps(written))
    return Project(tmp_path, ProjectConfig.model_validate({"tables": {"example": "complete_journey"}}))


def step(plan, name):
    return next(step for step in plan.steps if step.name == name)


def test_costs_grow_with_the_data(project):
    plan, stamps = make_plan(project), Stamps(project.folder / "steps.json")
    before = Forecast(project, plan, stamps)
    manifest = project.folder / "tables" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("1000000", "4000000"))
    after = Forecast(project, plan, stamps)
    for name in ("finetune llm", "score llm", "rank frame", "rank ablate"):
        few, many = before.of(step(plan, name)), after.of(step(plan, name))
        assert 2 * few.seconds < many.seconds <= 4 * few.seconds, name
        assert few.memory_mb < many.memory_mb, name
    assert before.of(step(plan, "export llm")) == after.of(step(plan, "export llm"))


def test_what_a_step_took_here_is_what_it_is_expected_to_take(project):
    plan, stamps = make_plan(project), Stamps(project.folder / "steps.json")
    cost = Cost(seconds=7.0, cpu_seconds=9.0, memory_mb=300.0, disk_mb=1.0)
    stamps.put(step(plan, "finetune llm"), {}, cost)
    assert Forecast(project, plan, stamps).of(step(plan, "finetune llm")) == cost


def test_steps_that_ran_correct_the_others_for_the_machine(project):
    plan, stamps = make_plan(project), Stamps(project.folder / "steps.json")
    expected = Forecast(project, plan, stamps)
    for name in ("rank frame", "rank ablate", "rank towers"):
        stamps.put(step(plan, name), {}, Cost(seconds=2 * expected.of(step(plan, name)).seconds))
    slower = Forecast(project, plan, stamps)
    assert slower.speed == pytest.approx(2.0)
    assert slower.of(step(plan, "score llm")).seconds == pytest.approx(2 * expected.of(step(plan, "score llm")).seconds)


def test_before_the_tables_only_what_is_fixed_is_foreseen(tmp_path):
    project = Project(tmp_path, ProjectConfig.model_validate({"tables": {"example": "complete_journey"}}))
    plan = make_plan(project)
    forecast = Forecast(project, plan, Stamps(tmp_path / "steps.json"))
    assert forecast.of(step(plan, "finetune llm")) == Cost()
    assert forecast.of(step(plan, "feast apply")).seconds > 0


def test_the_lines_name_the_long_steps(project):
    plan = make_plan(project)
    forecast = Forecast(project, plan, Stamps(project.folder / "steps.json"))
    head, *lines = forecast_lines(forecast, list(plan.steps))
    assert duration(sum(forecast.of(one).seconds for one in plan.steps)) in head
    assert any(line.split()[:2] == ["finetune", "llm"] for line in lines)
    assert not any("publish" in line for line in lines)


#: What the steps of the demo took: processor seconds, MB of memory, MB of disk; None where it changes with settings.
DEMO = {"users": 200, "advertisers": 664, "ads": 864, "events": 166_406, "impressions": 478_754}
MEASURED = {
    "data build": (10.8, 604, 3.9),
    "finetune llm": (113, 1537, 205),
    "export llm": (17, 1578, 205),
    "score llm": (58, 661, 14.3),
    "publish llm": (None, 290, 16.6),
    "finetune sasrec": (23.7, 710, None),
    "finetune text_pair": (57, 1066, None),
    "score text_pair": (None, 290, 25.2),
    "publish text_pair": (None, 335, None),
    "rank features": (3.0, 432, 68.7),
    "rank frame": (13.6, 965, 35.5),
    "rank ablate": (None, 1209, None),  # its time is that of the arms, below
    "feast materialize": (9.3, 778, None),
}
#: All 801 households at the first of three cut-offs: five priors by category and a placebo.
ALL = {"users": 801, "advertisers": 664, "ads": 864, "events": 722_073, "impressions": 1_964_767}
MEASURED_ALL = {
    "data build": (14.2, 1536, 16.8),
    "finetune text_pair": (70, 1259, None),
    "finetune lexical_pair": (29.1, 904, None),
    "score text_pair": (None, 429, 87.9),
    "rank features": (10, 789, None),
    "rank frame": (27.8, 1444, 93.0),
    "rank ablate": (667, 1139, None),
    "rank towers": (18.5, 1036, None),
    "rank two-by-two": (5.9, 598, None),
}


def sized(folder, rows, pairs, config):
    """A project whose tables say that they hold so much: its plan, and what is foreseen."""
    for name, advertisers in pairs.items():
        write_tiny(folder / name, users=4, weeks=30)
        manifest = folder / name / "manifest.json"
        written = json.loads(manifest.read_text())
        plan = {"start": "2017-01-01T00:00:00+00:00", "finetune_end": "2017-05-08T04:00:00+00:00"}
        plan |= {"train_end": "2017-09-25T04:00:00+00:00", "valid_end": "2017-10-23T04:00:00+00:00"}
        written["facts"]["time_plan"] |= {**plan, "end": "2018-01-02T05:00:00+00:00"}
        written["facts"]["rows"] = {**rows, "advertisers": advertisers}
        manifest.write_text(json.dumps(written))
    example = {"tables": {"example": "complete_journey"}}
    project = Project(folder, ProjectConfig.model_validate(example | config))
    plan = make_plan(project)
    return plan, Forecast(project, plan, Stamps(folder / "steps.json"))


def measured_as_foreseen(forecast, steps, measured):
    """Within a factor of two or so."""
    for name, step_ in steps.items():
        for what, value in zip(("cpu_seconds", "memory_mb", "disk_mb"), measured.get(name, ()), strict=False):
            if value is not None:
                assert 0.6 < getattr(forecast.of(step_), what) / value < 2.2, (name, what)


def test_the_demo_is_foreseen_as_it_was_measured(tmp_path):
    priors = [{"name": "llm", "predictor": "llm", "settings": {"layers": 6, "training": {"epochs": 3}}}, "sasrec"]
    priors.append({"name": "text_pair", "predictor": "text", "by": "advertiser_category"})
    plan, forecast = sized(tmp_path, DEMO, {"tables": 664, "tables_pair": 1217}, {"priors": priors})
    measured_as_foreseen(forecast, {one.name: one for one in plan.steps}, MEASURED)


def test_all_households_at_three_cut_offs_are_foreseen_as_they_were_measured(tmp_path):
    names = ("lexical_pair", "twin_pair", "minilm_pair", "text_pair")
    priors = [{"name": name, "predictor": "text", "by": "advertiser_category"} for name in names]
    priors[-1]["placebo"] = True
    priors.append({"name": "neighbours_pair", "predictor": "neighbours", "by": "advertiser_category"})
    sizes = {"tables": 664, "cutoff_1/tables_pair": 1348}
    plan, forecast = sized(tmp_path, ALL, sizes, {"priors": priors, "origins": 3})
    steps = {one.name.removesuffix(" (cut-off 1)"): one for one in plan.steps}
    measured_as_foreseen(forecast, steps, MEASURED_ALL)
    assert set(MEASURED_ALL) <= set(steps)


#: Clusters of the demo's 1,214 texts, by words and by a network.
MEASURED_CLUSTERS = {"lexical": (15.7, 452, None), None: (58, 1050, None)}


@pytest.mark.parametrize("base", MEASURED_CLUSTERS)
def test_clusters_are_foreseen_as_they_were_measured(tmp_path, base):
    """Words take a fraction of what a network takes; before `data pairs` the ads tell how many texts there are."""
    priors = [{"name": "text_pair", "predictor": "text", "by": "advertiser_category"}]
    config = {"priors": priors, "clusters": {"base": base}}
    for pairs in ({"tables": 664, "tables_pair": 1217}, {"tables": 664}):
        plan, forecast = sized(tmp_path / str(len(pairs)), DEMO, pairs, config)
        measured_as_foreseen(
            forecast, {"data clusters": step(plan, "data clusters")}, {"data clusters": MEASURED_CLUSTERS[base]}
        )


def test_small_data_does_not_make_a_language_model_small(project):
    """A log of a thousand events still loads the same network: what it takes is not foreseen as next to nothing."""
    manifest = project.folder / "tables" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("1000000", "1000"))
    plan = make_plan(project)
    forecast = Forecast(project, plan, Stamps(project.folder / "steps.json"))
    for name, memory, disk in (("finetune llm", 1000, 150), ("export llm", 1000, 150), ("score llm", 400, 0)):
        cost = forecast.of(step(plan, name))
        assert cost.memory_mb > memory, name
        assert cost.disk_mb >= disk, name


def test_of_several_cut_offs_each_ablation_fits_every_arm_and_texts_are_those_of_the_cut_offs(project):
    priors = ["popularity", {"name": "text_pair", "predictor": "text", "by": "advertiser_category"}]
    stamps = Stamps(project.folder / "steps.json")
    costs = {}
    for origins in (1, 3):
        config = {"tables": {"example": "complete_journey"}, "priors": priors, "origins": origins}
        rolling = Project(project.folder, ProjectConfig.model_validate(config))
        plan, suffix = make_plan(rolling), " (cut-off 2)" if origins > 1 else ""
        forecast = Forecast(rolling, plan, stamps)
        costs[origins] = [forecast.of(step(plan, name + suffix)) for name in ("rank ablate", "finetune text_pair")]
        lines = forecast_lines(forecast, list(plan.steps))[1:]
        assert len({len(line) for line in lines}) == 1  # in columns, however long a step's name is
    # the first answer of one cut-off fits two of three arms; of several there is none to take over
    assert costs[3][0].seconds > 1.5 * costs[1][0].seconds
    write_tiny(project.folder / "cutoff_1" / "tables_pair")
    manifest = project.folder / "cutoff_1" / "tables_pair" / "manifest.json"
    written = json.loads(manifest.read_text())
    written["facts"]["rows"] = {**MILLION, "advertisers": 10 * MILLION["advertisers"]}
    manifest.write_text(json.dumps(written))
    after = Forecast(rolling, plan, stamps).of(step(plan, "finetune text_pair (cut-off 2)"))
    assert after.seconds > 3 * costs[3][1].seconds
