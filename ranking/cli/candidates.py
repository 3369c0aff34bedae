"""`advprior rank towers`, `advprior rank candidates`, `advprior rank two-by-two`: options in, one folder out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from advprior.store.contract import PREDICTORS, prior_view
from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import require_impressions
from ranking.cli.measure import (
    _ABLATE_FIX,
    _FOLDER,
    _FRAME_FIX,
    _TABLES_FIX,
    _predictors,
    force_option,
    frame_option,
    repo_option,
    tables_option,
)

TOWERS_VERSION = 2
TWO_BY_TWO_VERSION = 5  # 5: what each user adds is kept, for `rank pool`
CANDIDATES_VERSION = 4  # 4: held against controls of random weights and of words as well

towers_option = click.option("--towers", "towers_folder", type=_FOLDER, required=True, help="What `rank towers` wrote.")
top_option = click.option(
    "--top",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Advertisers of a prior that count as predicted.",
)


@click.command()
@tables_option
@click.option("--out", type=_FOLDER, required=True, help="Where the towers go.")
@click.option("--size", type=click.IntRange(2), default=32, show_default=True, help="Length of a vector.")
@click.option(
    "--epochs", type=click.IntRange(1), default=30, show_default=True, help="At most; validation stops earlier."
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of torch.")
@click.option("--seed", default=0, show_default=True, help="Of the start and the order of training.")
@click.option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N",
    help="Where they are fitted. Default: `device` of the project, else auto: CUDA where torch has it, else the CPU.",
)
@force_option
def towers(
    tables: Path, out: Path, size: int, epochs: int, threads: int, seed: int, device: str | None, force: bool
) -> None:
    """Fit a two-tower model of users and ads, saved as plain arrays.

    Learns from engagements before the ranker's validation. Needs torch (extra [train]); what serves it does not.
    """
    read_manifest(tables, fix=_TABLES_FIX)
    require_impressions(tables)
    config = {"size": size, "epochs": epochs, "threads": threads, "seed": seed}
    inputs = {"tables": manifest_digest(tables)}
    key = run_key("rank towers", config, inputs, TOWERS_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank towers: unchanged, reused {out}")
        return
    from advprior.store.device import computing_on, device_setting
    from advprior.store.tables import load_tables, load_time_plan
    from ranking.candidates.training import TowerConfig, fit_towers

    with (
        computing_on(device_setting(device, tables, out)),
        new_run(out, "rank towers", config=config, inputs=inputs, key=key) as run,
    ):
        loaded = load_tables(tables, "users", "ads", "events", "impressions")
        fitted = fit_towers(
            loaded["users"],
            loaded["ads"],
            loaded["events"],
            loaded["impressions"],
            load_time_plan(tables),
            TowerConfig(**config),
        )
        fitted.save(run.path)
        run.facts.update(fitted.facts)
    facts = fitted.facts
    click.echo(
        f"rank towers: {facts['users']:,} users, {facts['ads']:,} ads, {facts['engaged']['train']:,} engaged; "
        f"validation loss {facts['valid_loss']:.3f} nats after {len(facts['curve'])} epochs, in {out}"
    )


@click.command()
@tables_option
@repo_option
@towers_option
@click.option("--out", type=_FOLDER, required=True, help="Where the curve goes.")
@click.option("--predictors", default=None, help="Priors that get slots, comma-separated. Default: those published.")
@click.option("--k", type=click.IntRange(1), default=20, show_default=True, help="Candidates per request.")
@top_option
@click.option("--replicates", type=click.IntRange(20), default=1000, show_default=True, help="Resamplings of users.")
@click.option(
    "--controls", default=None, help="Controls, comma-separated: NAME, or NAME:KIND:OF[:OF…]. Default: by the arms."
)
@force_option
def candidates(
    tables: Path,
    repo: Path,
    towers_folder: Path,
    out: Path,
    predictors: str | None,
    k: int,
    top: int,
    replicates: int,
    controls: str | None,
    force: bool,
) -> None:
    """Recall of engaged ads and concentration of advertisers, for every quota of slots that priors fill.

    The quota is chosen on validation; priors come through the store, as they were known at each request. Each prior is
    held against the best control among those that get slots, and against its placebo.
    """
    from ranking.candidates.towers import FIX, STEP
    from ranking.frame.preflight import check_published, check_store, published_predictors
    from ranking.frame.views import view_folder

    read_manifest(tables, fix=_TABLES_FIX)
    require_impressions(tables)
    read_manifest(towers_folder, step=STEP, fix=FIX)
    check_store(repo)
    names = published_predictors(repo, PREDICTORS) if predictors is None else _predictors(predictors)
    check_published(repo, [prior_view(name) for name in names or [PREDICTORS[0]]])
    inputs = {
        "tables": manifest_digest(tables),
        "towers": manifest_digest(towers_folder),
        **{prior_view(name): manifest_digest(view_folder(repo, prior_view(name))) for name in names},
    }
    cheap, kinds = _controls(controls, names)
    config = {"predictors": names, "k": k, "top": top, "replicates": replicates, "controls": cheap, "kinds": kinds}
    key = run_key("rank candidates", config, inputs, CANDIDATES_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank candidates: unchanged, reused {out}")
        return
    from ranking.candidates.curve import CurveOptions, candidate_curve
    from ranking.candidates.towers import Towers

    with new_run(out, "rank candidates", config=config, inputs=inputs, key=key) as run:
        options = CurveOptions(k=k, top=top, replicates=replicates, controls=tuple(cheap), kinds=kinds)
        curve = candidate_curve(tables, repo, Towers.load(towers_folder), names, options)
        curve.save(run.path)
        run.facts.update(chosen=curve.chosen)
    for name in curve.told:
        click.echo(curve.sentence(name))
    click.echo(f"rank candidates: recall@{k} at {len(curve.table) // max(2 * len(names), 1)} quotas, in {out}")


def _controls(text: str | None, names: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Controls among the predictors, and of those that lack one thing of others: what, and of whom.

    ``neighbours,lexical_pair:lexical:text_pair:minilm_pair``, or the package's arms without a text.
    """
    from ranking.models.arms import load_arms

    if text is None:
        arms = load_arms().of_role("control")
        entries = {entry.removeprefix(prior_view("")): (arm.kind or "", *arm.of) for arm in arms for entry in arm.adds}
    else:
        entries = {name: tuple(lacks) for name, *lacks in (entry.split(":") for entry in _predictors(text))}
    cheap = [name for name in names if name in entries]
    return cheap, {name: entries[name] for name in cheap if len(entries[name]) > 1}


@click.command("two-by-two")
@tables_option
@frame_option
@click.option("--ablation", type=_FOLDER, required=True, help="What `rank ablate` made of that frame.")
@towers_option
@click.option("--out", type=_FOLDER, required=True, help="Where the result goes.")
@click.option("--arm", default="llm", show_default=True, help="Arm of the ablation whose priors are measured.")
@click.option("--k", type=click.IntRange(1), help="Candidates per slate. Default: 15, two thirds of a short slate.")
@click.option("--slots", type=click.IntRange(1), help="Ads shown per slate. Default: those of the ablation.")
@click.option("--replicates", type=click.IntRange(20), default=1000, show_default=True, help="Resamplings of users.")
@force_option
def two_by_two(
    tables: Path,
    frame_folder: Path,
    ablation: Path,
    towers_folder: Path,
    out: Path,
    arm: str,
    k: int | None,
    slots: int | None,
    replicates: int,
    force: bool,
) -> None:
    """Candidates with and without priors, ranked with and without: conversions per slate, end to end.

    On the ads of each user's slate, of which the outcome is known: a re-ordering of shown ads, not a larger corpus.
    """
    from ranking.candidates.towers import FIX, STEP

    read_manifest(tables, fix=_TABLES_FIX)
    read_manifest(frame_folder, step="rank frame", fix=_FRAME_FIX)
    read_manifest(ablation, step="rank ablate", fix=_ABLATE_FIX)
    read_manifest(towers_folder, step=STEP, fix=FIX)
    folders = {"tables": tables, "frame": frame_folder, "ablation": ablation, "towers": towers_folder}
    inputs = {name: manifest_digest(folder) for name, folder in folders.items()}
    config = {"arm": arm, "k": k, "slots": slots, "replicates": replicates}
    key = run_key("rank two-by-two", config, inputs, TWO_BY_TWO_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank two-by-two: unchanged, reused {out}")
        return
    from ranking.candidates.bothsteps import TwoByTwoOptions
    from ranking.candidates.bothsteps import two_by_two as measure
    from ranking.candidates.towers import Towers

    with new_run(out, "rank two-by-two", config=config, inputs=inputs, key=key) as run:
        options = TwoByTwoOptions(arm=arm, k=k, slots=slots, replicates=replicates)
        result = measure(tables, frame_folder, ablation, Towers.load(towers_folder), options)
        result.save(run.path)
        run.facts.update(quota=result.about["quota"], effects=[*result.sentences(), *result.others()])
    click.echo(repr(result))
    among, k = result.about["among_candidates"], result.about["k"]
    click.echo(
        f"rank two-by-two: quota {result.about['quota']:.0%} of {k} (from validation), {among['alone']:,} of "
        f"{result.about['positives']:,} engaged ads among the candidates, {among['augmented']:,} with priors, in {out}"
    )
