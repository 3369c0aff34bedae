"""The steps of a project: every command is one that exists, every prior has an arm that reads it, order is by need."""

from __future__ import annotations

import shlex

import click
import pytest
import yaml
from click.testing import CliRunner

from advprior.cli import cli
from advprior.pipeline.armsfile import arms_text, first_arms_text
from advprior.pipeline.outlook import edited_configs
from advprior.pipeline.plan import FIRST, make_plan
from advprior.pipeline.project import EXAMPLES, PROJECT_FILE, lay_out
from advprior.pipeline.settings import Project, ProjectConfig, read_project
from advprior.pipeline.steps import Stamps, states
from advprior.store.contract import prior_view
from ranking.models.arms import Arms

EXAMPLE = {"example": "complete_journey"}
CLUSTERS = {"origins": 2, "clusters": {"base": "lexical", "number": 32, "shuffled": True}}
PAID = {"decide_on": "ndcg", "price": {"cpu_hour": 0.05, "gpu_hour": 2, "currency": "EUR"}}


def parse(words: list[str]) -> click.Context:
    """Resolve a command line without running it; click refuses unknown options and missing values."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, parent=context, info_name=name)
    return command.make_context(command.name or "", list(words))


def project(folder, **keys) -> Project:
    return Project(folder, ProjectConfig.model_validate({"tables": EXAMPLE, **keys}))


@pytest.mark.parametrize(
    "keys", [{}, {"priors": "full"}, {"origins": 3}, {"retrieval": False, "report": False}, PAID, CLUSTERS]
)
def test_every_step_is_a_command_that_exists(tmp_path, keys):
    steps = make_plan(project(tmp_path, **keys)).steps
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        if step.command[0] == "advprior":
            assert parse(list(step.command[1:])).params, shlex.join(step.command)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_built_by_a_command(tmp_path, example):
    lay_out(tmp_path, example)
    build = make_plan(read_project(tmp_path)).steps[0]
    assert build.command[:4] == ("advprior", "data", "build", example)
    assert parse(list(build.command[1:])).params


@pytest.mark.parametrize("keys", [{}, {"priors": "full"}, {"origins": 2}, CLUSTERS])
def test_a_step_stands_after_all_that_it_needs(tmp_path, keys):
    plan = make_plan(project(tmp_path, **keys))
    place = {step.name: i for i, step in enumerate(plan.steps)}
    for step in plan.steps:
        assert all(place[other.name] < place[step.name] for other in plan.needs(step)), step.name
    outputs = {step.output for step in plan.steps} | set(plan.files)
    views = ("user_profile", "ad_stats")  # written by `rank features`, whose output is named by the third
    for step in plan.steps:
        for name in step.inputs:
            assert name in outputs or name.endswith(views) or "feature_repo/" in name, (step.name, name)


def test_the_first_answer_comes_before_every_network(tmp_path):
    plan = make_plan(project(tmp_path))
    names = [step.name for step in plan.steps]
    assert names.index(FIRST) < min(names.index(f"finetune {name}") for name in ("llm", "sasrec", "text_pair"))
    first = {step.name for step in plan.until(FIRST)}
    assert "finetune popularity" in first
    assert not {"finetune llm", "rank frame", "publish placebo"} & first


@pytest.mark.parametrize("priors", ["few", "full"])
def test_every_prior_and_placebo_has_its_arm(tmp_path, priors):
    config = project(tmp_path, priors=priors).config
    arms = Arms.model_validate(yaml.safe_load(arms_text(config)))
    for prior in config.priors:
        assert arms.find(prior.name).adds, prior.name
        if prior.placebo_name:
            assert arms.placebo_of(arms.find(prior.name)) == arms.find(prior.placebo_name)
    assert arms.of_role("treatment")[0].name == "llm"


def test_a_prior_of_ones_own_gets_an_arm_and_the_served_one_the_verdict(tmp_path):
    own = {"name": "ours", "predictor": "text", "label": "+ our texts", "placebo": True}
    config = project(tmp_path, priors=["popularity", {"name": "llm"}, own], serve="ours").config
    arms = Arms.model_validate(yaml.safe_load(arms_text(config)))
    assert arms.of_role("treatment")[0].label == "+ our texts"
    assert arms.placebo_of(arms.find("ours")) == arms.find("placebo_ours")
    assert arms.find("ours").adds == tuple(pattern.replace("llm", "ours") for pattern in arms.find("llm").adds)


def test_clusters_are_made_once_and_counted_by_the_features_alone(tmp_path):
    """At each cut-off of its own tables; every prior reads the tables that it read before."""
    plan = make_plan(project(tmp_path, **CLUSTERS))
    made = [step for step in plan.steps if step.kind == "data clusters"]
    assert [step.inputs for step in made] == [(f"cutoff_{number}/tables",) for number in (1, 2)]
    assert made[0].command[-7:-2] == ("--number", "32", "--seed", "0", "--shuffled")
    readers = [step.kind for step in plan.steps if {step.output for step in made} & set(step.inputs)]
    assert readers == ["rank features"] * 2


@pytest.mark.parametrize(
    ("clusters", "role"),
    [(True, "treatment"), ({"base": "lexical"}, "control"), ({"base": "x@twin=true"}, "control"), (False, None)],
)
def test_clusters_have_an_arm_where_a_project_makes_them(tmp_path, clusters, role):
    config = project(tmp_path, clusters=clusters).config
    arms = {arm.name: arm for arm in Arms.model_validate(yaml.safe_load(arms_text(config))).arms}
    assert (arms["cluster"].role if role else arms.get("cluster")) == role
    assert not role or (arms["cluster"].adds, arms["cluster"].optional) == (("cluster",), False)


@pytest.mark.parametrize(
    ("predictor", "settings"), [("text", {"base": "models/llm"}), ("hybrid", {"encoder": {"base": "models/llm"}})]
)
def test_texts_are_encoded_by_a_fitted_llm_after_its_fit(tmp_path, predictor, settings):
    """At each cut-off by the one that was fitted before it."""
    own = {"name": "ours", "predictor": predictor, "settings": settings}
    plan = make_plan(project(tmp_path, priors=["popularity", own, {"name": "llm"}], serve="llm", origins=2))
    names = [step.name for step in plan.steps]
    fits = [step for step in plan.steps if step.name.startswith("finetune ours")]
    assert len(fits) > 1
    for step in fits:
        run = next(name for name in step.inputs if name.endswith("models/llm"))
        assert run.removesuffix("models/llm") == step.output.removesuffix("models/ours")
        assert names.index(next(other.name for other in plan.steps if other.output == run)) < names.index(step.name)
        written = yaml.safe_load(plan.files[step.command[step.command.index("--config") + 1]])
        assert run in (written.get("base"), (written.get("encoder") or {}).get("base"))


@pytest.mark.parametrize(("base", "origins"), [("models/llm", 1), ("./models/llm@skip_first", 2)])
def test_clusters_of_a_fitted_llm_come_after_its_fit_at_each_cut_off_by_its_own(tmp_path, base, origins):
    made = project(tmp_path, clusters={"base": base}, origins=origins)
    plan = make_plan(made)
    names = [step.name for step in plan.steps]
    assert len(set(names)) == len(names)
    of_clusters = [step for step in plan.steps if step.kind == "data clusters"]
    assert len(of_clusters) == origins
    for step in of_clusters:
        before = [other for other in plan.needs(step) if other.kind == "finetune llm"]
        (run,) = [other.output for other in before]
        assert run.removesuffix("models/llm") == step.output.removesuffix("tables_cluster")
        assert names.index(before[0].name) < names.index(step.name)
        encoder = step.command[step.command.index("--base") + 1]
        assert (encoder.partition("@")[0], encoder.partition("@")[2]) == (run, base.partition("@")[2])
    assert Arms.model_validate(yaml.safe_load(arms_text(made.config))).find("cluster").role == "treatment"


def test_clusters_are_read_by_any_folder_and_by_no_run_that_reads_no_text(tmp_path):
    made = project(tmp_path, clusters={"base": "models/own_encoder"})
    (step,) = [step for step in make_plan(made).steps if step.kind == "data clusters"]
    assert "models/own_encoder" in step.command
    random = {"name": "random", "predictor": "llm", "settings": {"twin": True}}
    made = project(tmp_path, priors=["llm", random], clusters={"base": "models/random"})
    assert Arms.model_validate(yaml.safe_load(arms_text(made.config))).find("cluster").role == "control"
    with pytest.raises(ValueError, match=r"models/sasrec is of predictor sasrec; name the run of an LLM"):
        project(tmp_path, clusters={"base": "models/sasrec"})


@pytest.mark.parametrize("origins", [1, 2])
def test_metric_and_price_reach_every_command_that_takes_them(tmp_path, origins):
    commands = [" ".join(step.command) for step in make_plan(project(tmp_path, origins=origins, **PAID)).steps]
    ablations = [text for text in commands if "rank ablate" in text]
    assert ablations
    assert all("--decide-on ndcg" in text for text in ablations)
    (report,) = [text for text in commands if "rank report" in text]
    assert "--cpu-hour 0.05 --gpu-hour 2 --currency EUR" in report


@pytest.mark.parametrize("origins", [1, 3])
def test_the_llm_alone_is_exported_as_the_project_says_on_tables_of_its_own_cut_off(tmp_path, origins):
    form = {"precision": "fp16", "attention": "fused"}
    steps = make_plan(project(tmp_path, origins=origins, export=form, device="cuda")).steps
    exports = [step for step in steps if step.kind.startswith("export")]
    assert sum(step.kind == "export llm" for step in exports) == origins
    for step in exports:
        command = " ".join(step.command)
        if step.kind != "export llm":
            assert "--precision" not in command
            continue
        assert "--precision fp16 --attention fused" in command
        assert command.endswith("--device cuda")
        fit = next(other for other in steps if other.output == step.command[2])
        for of in (fit, step):
            assert of.command[of.command.index("--tables") + 1] in of.inputs
        assert fit.command[fit.command.index("--tables") + 1] == step.command[step.command.index("--tables") + 1]


def test_a_random_weight_prior_of_ones_own_is_the_control_of_its_treatment(tmp_path):
    """By its settings, whatever it is called; without its treatment, or on trial itself, it is of no kind."""
    random = {"name": "nothing", "predictor": "text", "settings": {"twin": True}}
    words = {"name": "words", "predictor": "hybrid", "settings": {"encoder": {"base": "lexical"}}}
    both = project(tmp_path, priors=["text", "hybrid", random, words]).config
    arms = Arms.model_validate(yaml.safe_load(arms_text(both)))
    assert {kind: arm.name for kind, arm in arms.kin_of(arms.find("text")).items()} == {"random_weights": "nothing"}
    assert {kind: arm.name for kind, arm in arms.kin_of(arms.find("hybrid")).items()} == {"lexical": "words"}
    for priors in (["popularity", random], ["text", {**random, "role": "treatment"}]):
        arms = Arms.model_validate(yaml.safe_load(arms_text(project(tmp_path, priors=priors, serve="nothing").config)))
        assert arms.find("nothing").kind is None


def test_the_first_arms_are_the_cheap_ones(tmp_path):
    arms = Arms.model_validate(yaml.safe_load(first_arms_text(project(tmp_path).config)))
    assert [arm.role for arm in arms.arms] == ["baseline", "control", "control", "control"]


def test_only_the_served_prior_is_published_online(tmp_path):
    steps = make_plan(project(tmp_path, serve="text_pair")).steps
    online = {step.name for step in steps if step.kind == "publish" and "--offline" not in step.command}
    assert online == {"publish text_pair"}
    (materialize,) = (step for step in steps if step.kind == "feast materialize")
    assert f"feature_repo/data/{prior_view('text_pair')}" in materialize.inputs
    assert f"feature_repo/data/{prior_view('llm')}" not in materialize.inputs


def test_a_new_project_has_everything_missing_and_says_so(tmp_path):
    lay_out(tmp_path, "complete_journey")
    made = read_project(tmp_path)
    plan = make_plan(made)
    every = states(tmp_path, plan, Stamps(tmp_path / "none.json"))
    assert {state for state, _ in every.values()} == {"missing"}
    assert (tmp_path / PROJECT_FILE).is_file()


def edited(folder, name, **changes):
    path = folder / "configs" / name
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}, sort_keys=False))


def test_edits_of_a_projects_configs_are_the_defaults_of_its_run(tmp_path):
    lay_out(tmp_path, "complete_journey")
    made = project(tmp_path, priors=["popularity", {"name": "llm", "settings": {"mode": "lora"}}, "sasrec", "text"])
    assert not [name for name in make_plan(made).files if "settings/sasrec" in name]
    assert edited_configs(made) == ""
    edited(tmp_path, "llm.yaml", layers=4, mode="full")
    edited(tmp_path, "hybrid.yaml", target="first", encoder={"layers": 2})
    files = {name: yaml.safe_load(text) for name, text in make_plan(made).files.items()}
    assert files[".advprior/settings/llm.yaml"] == {"layers": 4, "mode": "lora"}
    assert files[".advprior/settings/sasrec.yaml"] == {"target": "first"}
    assert ".advprior/settings/text.yaml" not in files
    assert "configs/hybrid.yaml" in edited_configs(made)


def test_arms_that_are_written_into_a_project_or_taken_out_are_so_in_its_run(tmp_path):
    lay_out(tmp_path, "complete_journey")
    path = tmp_path / "configs" / "arms.yaml"
    content = yaml.safe_load(path.read_text())
    content["arms"] = [arm for arm in content["arms"] if arm["name"] != "neighbours"]
    content["arms"].append({"name": "deep", "service": "s", "label": "deeper", "adds": ["prior_llm"]})
    next(arm for arm in content["arms"] if arm["name"] == "llm")["label"] = "+ ours"
    content["ranker"] |= {"num_leaves": 15, "patience": 5}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    made = project(tmp_path, arms={"ranker": {"patience": 7}})
    arms = Arms.model_validate(yaml.safe_load(make_plan(made).files[".advprior/arms.yaml"]))
    names = [arm.name for arm in arms.arms]
    assert "deep" in names
    assert "neighbours" not in names
    assert "configs/arms.yaml (not measured, as it has no such arm: neighbours)" in edited_configs(made)
    assert arms.find("llm").label == "+ ours"
    assert (arms.ranker.num_leaves, arms.ranker.patience) == (15, 7)


@pytest.mark.parametrize(
    ("name", "text"),
    [("arms.yaml", "arms: 3"), ("arms.yaml", "arms: ["), ("llm.yaml", "- 1"), ("llm.yaml", "layer: 3")],
)
def test_a_broken_config_of_a_project_is_refused_before_anything_runs(tmp_path, name, text):
    lay_out(tmp_path, "complete_journey")
    (tmp_path / "configs" / name).write_text(text)
    result = CliRunner().invoke(cli, ["run", "--dry-run", str(tmp_path)])
    assert result.exception.code in ("CFG001", "CFG002")
    assert name in str(result.exception)


def test_a_wrong_setting_of_the_ranker_is_refused_before_anything_runs(tmp_path):
    lay_out(tmp_path, "complete_journey")
    edited(tmp_path, "arms.yaml", ranker={"num_leaves": 1})
    result = CliRunner().invoke(cli, ["run", "--dry-run", str(tmp_path)])
    assert result.exception.code == "CFG001"
    assert "num_leaves" in str(result.exception)


def test_what_a_dry_run_prints_can_be_typed(tmp_path):
    """Settings of one prior lie in a file that nobody writes by hand: it is there before a run comes to it."""
    lay_out(tmp_path, "complete_journey")
    result = CliRunner().invoke(cli, ["run", "--dry-run", str(tmp_path)], catch_exceptions=False)
    words = [shlex.split(line) for line in result.output.splitlines() if line.startswith("advprior ")]
    read = {line[line.index(option) + 1] for line in words for option in ("--config", "--arms") if option in line}
    assert any(name.startswith(".advprior/settings/") for name in read)
    assert [name for name in sorted(read) if not (tmp_path / name).is_file()] == []


def test_a_ranker_beside_the_project_file_is_an_input_of_the_ablation(tmp_path):
    lay_out(tmp_path, "complete_journey")
    own = {"name": "own", "label": "own", "adds": ["prior_neighbours"], "ranker": "my_ranker:make"}
    far = {**own, "name": "far", "ranker": "sklearn.ensemble:HistGradientBoostingClassifier"}
    path = tmp_path / "configs" / "arms.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "arms": [*content["arms"], own, far]}, sort_keys=False))
    (tmp_path / "my_ranker.py").write_text("from sklearn.ensemble import HistGradientBoostingClassifier as make\n")
    (ablate,) = (step for step in make_plan(project(tmp_path)).steps if step.name == "rank ablate")
    assert [name for name in ablate.inputs if name.endswith(".py")] == ["my_ranker.py"]
