"""`advprior rank …` commands: options in, one folder out. Heavy imports stay inside, after the reuse check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from advprior.store.contract import PREDICTORS, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.project_files import DECIDE_ON
from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import require_impressions

if TYPE_CHECKING:
    from ranking.evidence.result import AblationResult
    from ranking.models.arms import Arms

_FOLDER = click.Path(path_type=Path, file_okay=False)
_TABLES_FIX = "advprior data build complete_journey --out TABLES"

tables_option = click.option("--tables", type=_FOLDER, required=True, help="Canonical tables.")
repo_option = click.option("--repo", type=_FOLDER, required=True, help="Feature repository.")
force_option = click.option("--force", is_flag=True, help="Run even if nothing changed.")


@click.command()
@tables_option
@repo_option
@force_option
def features(tables: Path, repo: Path, force: bool) -> None:
    """Publish user_profile, user_history and ad_stats, as of each snapshot.

    Everything is computed strictly before its snapshot. Rows of published snapshots whose past has not changed are
    taken over; with --force every snapshot is counted again. Afterwards: feast -c REPO apply.
    """
    from ranking.frame.preflight import check_store, features_run_key
    from ranking.frame.views import BASELINE_VIEWS, view_folder

    read_manifest(tables, fix=_TABLES_FIX)
    require_impressions(tables)
    check_store(repo)
    if not force and all(is_current(view_folder(repo, v), features_run_key(tables, v)) for v in BASELINE_VIEWS):
        click.echo(f"rank features: unchanged, reused {repo / 'data'}")
        return
    from ranking.frame.publish import publish_features

    rows = publish_features(tables, repo, anew=force)
    made = ", ".join(f"{view} {count:,} rows" for view, count in rows.items())
    click.echo(f"rank features: published {made} in {repo / 'data'}")


@click.command()
@tables_option
@repo_option
@click.option("--out", type=_FOLDER, required=True, help="Where the frame goes.")
@click.option("--predictors", default=None, help="Priors to join, comma-separated. Default: those published.")
@click.option(
    "--stale", "stale_text", default="", help="Also the priors of so many weeks ago, such as 1,4,12, of the first one."
)
@force_option
def frame(tables: Path, repo: Path, out: Path, predictors: str | None, stale_text: str, force: bool) -> None:
    """Join every impression with what was known before it, through Feast, and check for leaks.

    Needs `feast -c REPO apply` after publishing. Codes of the leak checks: docs/checks.md.
    """
    from ranking.frame.preflight import preflight, published_predictors
    from ranking.frame.sources import sources_unchanged
    from ranking.frame.views import BASELINE_VIEWS, view_folder

    read_manifest(tables, fix=_TABLES_FIX)
    require_impressions(tables)
    names = published_predictors(repo, PREDICTORS) if predictors is None else _predictors(predictors)
    preflight(repo, names)
    views = [*BASELINE_VIEWS, *map(prior_view, names)]
    inputs = {"tables": manifest_digest(tables), **{v: manifest_digest(view_folder(repo, v)) for v in views}}
    # the registry holds the services: a feature added to one must give a new frame
    stale = _weeks(stale_text)
    config = {"predictors": names, "definitions": _definitions_digest(repo), **({"stale": stale} if stale else {})}
    key = run_key("rank frame", config, inputs, FRAME_VERSION)
    if not force and is_current(out, key) and sources_unchanged(out):
        click.echo(f"rank frame: unchanged, reused {out}")
        return
    from ranking.frame.absent import not_yet_existing
    from ranking.frame.build import write_frame
    from ranking.frame.read import FRAME_FORMAT

    with new_run(out, "rank frame", config=config, inputs=inputs, key=key) as run:
        warnings, facts = write_frame(tables, repo, names, run.path, stale=stale)
        run.facts.update(facts, frame_format=FRAME_FORMAT)
    click.echo(
        f"rank frame: {sum(facts['rows'].values()):,} impressions, {len(facts['features'])} features, "
        f"priors of {', '.join(names) or 'none'}, in {out}"
    )
    if line := not_yet_existing(facts["not_yet_existing"]):
        click.echo(line)
    if facts["late_events"]:
        click.echo(f"rank frame: {facts['late_events']:,} events came after a snapshot that would have seen them")
    for finding in warnings:
        click.echo(f"warning {finding.code}: {finding.message}\n  fix: {finding.fix} ({finding.docs})", err=True)


FRAME_VERSION = 4  # of what `frame` computes: raise it when the same inputs give another frame


def _predictors(text: str) -> list[str]:
    """Names of a comma-separated option; any published prior_<name> will do."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise AdvpriorError("CFG001", "no predictor is named", where="--predictors", expected=", ".join(PREDICTORS))
    return names


def _weeks(text: str) -> list[int]:
    """Whole weeks of a comma-separated option."""
    try:
        weeks = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        weeks = [0]
    if any(week < 1 for week in weeks):
        raise AdvpriorError(
            "CFG001", "weeks are whole numbers from 1 on", where="--stale", actual=text, expected="1,4,12"
        )
    return sorted(set(weeks))


def _definitions_digest(repo: Path) -> str:
    """Digest of what was applied: the definitions and the store's configuration."""
    from advprior.store.runs import digest, sha256_file

    files = sorted(path for path in Path(repo).glob("*") if path.suffix in (".py", ".yaml"))
    return digest({path.name: sha256_file(path) for path in files})


TRAIN_VERSION = 3
ABLATE_VERSION = 5  # 5: the verdict is about a metric of one's choice; scores of validation rows are kept
_FRAME_FIX = "advprior rank frame --tables TABLES --repo FEATURE_REPO --out FRAME"
_ABLATE_FIX = "advprior rank ablate --frame FRAME --out ABLATION"
_ARMS_FILE = click.Path(path_type=Path, dir_okay=False)

frame_option = click.option("--frame", "frame_folder", type=_FOLDER, required=True, help="What `rank frame` wrote.")
arms_option = click.option(
    "--arms", "arms_file", type=_ARMS_FILE, help="Arms and ranker settings. Default: the project's, else the package's."
)


@click.command()
@frame_option
@click.option("--arm", "arm_name", help="Arm to train, such as llm or llm_rank.")
@click.option("--service", help="In place of --arm: the first arm of this feature service.")
@click.option("--out", type=_FOLDER, required=True, help="Where the ranker goes.")
@arms_option
@click.option("--seed", default=0, show_default=True, help="Seed of bagging and feature sampling.")
@force_option
def train(
    frame_folder: Path,
    arm_name: str | None,
    service: str | None,
    out: Path,
    arms_file: Path | None,
    seed: int,
    force: bool,
) -> None:
    """Train and save one ranker, calibrated on validation rows.

    Its manifest says which feature service, features and categories it must be fed.
    """
    from ranking.cli.defaults import arms_of

    name = arm_name or service
    if name is None or (arm_name and service):
        raise AdvpriorError(
            "CFG001",
            "give exactly one arm to train",
            where="--arm, --service",
            actual="neither" if name is None else "both",
            expected="one of the two",
            fix="advprior rank train --frame FRAME --arm llm --out OUT",
        )

    read_manifest(frame_folder, step="rank frame", fix=_FRAME_FIX)
    arms = arms_of(arms_file, frame_folder, out)
    arm = arms.find(name)
    config = {"arm": arm.model_dump(mode="json"), "ranker": arms.config_of(arm).model_dump(), "seed": seed}
    inputs = {"frame": manifest_digest(frame_folder)}
    key = run_key("rank train", config, inputs, TRAIN_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank train: unchanged, reused {out}")
        return
    from ranking.evidence.training import train_arm

    with new_run(out, "rank train", config=config, inputs=inputs, key=key) as run:
        run.facts.update(train_arm(frame_folder, arm, arms.config_of(arm), seed, run.path))
    facts = run.facts
    click.echo(
        f"rank train: {arm.name} ({arm.service}), {facts['features']} features, {facts['rounds']} rounds, "
        f"test AUC {facts['test']['auc']:.4f}, log-loss {facts['test']['log_loss']:.4f}, in {out}"
    )


@click.command()
@frame_option
@click.option("--out", type=_FOLDER, required=True, help="Where the ablation goes.")
@arms_option
@click.option(
    "--arm", "asked", multiple=True, help="Measure this arm (an optional one too) and the baseline only. Repeatable."
)
@click.option("--optional", is_flag=True, help="Measure optional arms too, those whose priors are in the frame.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Rankers per arm.")
@click.option("--replicates", type=click.IntRange(20), default=1000, show_default=True, help="Resamplings of users.")
@click.option(
    "--decide-on",
    type=click.Choice(DECIDE_ON),
    help="Metric of the verdict. Default: conversions per slate, AUC where slates leave no choice.",
)
@click.option("--slots", type=click.IntRange(1), help="Ads shown of a slate. Default: 5, a third of a short slate.")
@click.option("--reuse", type=_FOLDER, help="Another ablation of the same rows, whose arms need not be fitted again.")
@click.option(
    "--user-shares",
    "shares_text",
    default="",
    metavar="0.1,0.3,1",
    help="Also fit every arm on such shares of the users: what priors add by share, and by age of an advertiser.",
)
@force_option
def ablate(
    frame_folder: Path,
    out: Path,
    arms_file: Path | None,
    asked: tuple[str, ...],
    optional: bool,
    seeds: int,
    replicates: int,
    decide_on: str | None,
    slots: int | None,
    reuse: Path | None,
    shares_text: str,
    force: bool,
) -> None:
    """Train every arm on the same rows and measure its lift over the baseline.

    Intervals are a paired bootstrap over users, with the noise of training in them. Arms whose priors are not in the
    frame are left out, and named; those asked for with --arm must be there. An arm is taken from --reuse where it was
    measured there by the same settings, seeds and values of its features.
    """
    from ranking.cli.defaults import arms_of, count_of, decided_on

    read_manifest(frame_folder, step="rank frame", fix=_FRAME_FIX)
    if reuse is not None:
        read_manifest(reuse, step="rank ablate", fix=_ABLATE_FIX)
    arms = arms_of(arms_file, frame_folder, out)
    seeds, replicates = (
        count_of(name, count, frame_folder, out) for name, count in (("seeds", seeds), ("replicates", replicates))
    )
    decide_on = decided_on(decide_on, frame_folder, out)
    config = {
        "arms": arms.model_dump(mode="json"),
        "decide_on": decide_on,
        "slots": slots,
        "seeds": seeds,
        "replicates": replicates,
        "asked": sorted(asked),
        **_own_rankers(arms),
        **({"optional": True} if optional else {}),
        **({"user_shares": shares, "shares_version": 2} if (shares := _shares(shares_text)) else {}),
    }
    inputs = {"frame": manifest_digest(frame_folder)}
    key = run_key("rank ablate", config, inputs, ABLATE_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank ablate: unchanged, reused {out}")
        return
    from ranking.evidence.ablation import AblationOptions, run_ablation
    from ranking.evidence.claims import JOINT_NOTE
    from ranking.evidence.result import AblationResult
    from ranking.evidence.user_shares import write_user_shares

    previous = None if reuse is None else AblationResult.load(reuse)
    with new_run(out, "rank ablate", config=config, inputs=inputs, key=key) as run:
        options = AblationOptions(seeds, replicates, reuse=previous, decide_on=decide_on, slots=slots)
        result, left_out = run_ablation(frame_folder, run.path, arms, options, asked=asked, optional=optional)
        run.facts.update(result.facts(), frame=str(frame_folder))
        of_shares = replace(options, reuse=result)  # on all users its arms are fitted already
        lines = write_user_shares(frame_folder, run.path, result.arms, shares, of_shares) if shares else []
    if left_out:
        click.echo(f"rank ablate: arms left out, their priors are not in the frame: {', '.join(left_out)}", err=True)
    click.echo("\n".join([*_summary(result, out, seeds, reuse), *lines, *result.verdict.sentences, JOINT_NOTE]))


def _summary(result: AblationResult, out: Path, seeds: int, reuse: Path | None) -> list[str]:
    """What was measured and what was taken over, as text."""
    measured = f"{len(result.arms.arms)} arms x {seeds} seeds in {result.about['seconds']:.0f} s, in {out}"
    taken = [] if reuse is None else [f"taken from {reuse}: {', '.join(result.about['reused']) or 'no arm'}"]
    return [f"rank ablate: {line}" for line in (*taken, measured)]


def _shares(text: str) -> list[float]:
    """Shares of users of a comma-separated option."""
    try:
        shares = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        shares = [0.0]
    if any(not 0 < share <= 1 for share in shares):
        raise AdvpriorError(
            "CFG001",
            "shares of users lie above 0 and up to 1",
            where="--user-shares",
            actual=text,
            expected="0.1,0.3,1",
        )
    return shares


def _own_rankers(arms: Arms) -> dict[str, dict[str, str | None]]:
    """What identifies rankers of the user's own: a change of their source is a change of the result."""
    own = [arm for arm in arms.arms if arm.ranker is not None]
    if not own:
        return {}
    from ranking.models.estimators import ranker_identity

    return {"rankers": {arm.name: ranker_identity(arm) for arm in own}}
