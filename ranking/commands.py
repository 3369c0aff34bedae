"""`advprior rank …` commands: options in, one folder out. Heavy imports stay inside, after the reuse check."""

from __future__ import annotations

from pathlib import Path

import click

from feature_repo.contract import PREDICTORS, prior_view
from feature_repo.errors import AdvpriorError
from feature_repo.runs import is_current, manifest_digest, new_run, read_manifest, run_key

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

    Everything is computed strictly before its snapshot. Afterwards: feast -c REPO apply.
    """
    from ranking.preflight import BASELINE_VIEWS, check_store, features_run_key, view_folder

    read_manifest(tables, fix=_TABLES_FIX)
    check_store(repo)
    if not force and all(is_current(view_folder(repo, v), features_run_key(tables, v)) for v in BASELINE_VIEWS):
        click.echo(f"rank features: unchanged, reused {repo / 'data'}")
        return
    from ranking.history import publish_features

    rows = publish_features(tables, repo)
    made = ", ".join(f"{view} {count:,} rows" for view, count in rows.items())
    click.echo(f"rank features: published {made} in {repo / 'data'}")


@click.command()
@tables_option
@repo_option
@click.option("--out", type=_FOLDER, required=True, help="Where the frame goes.")
@click.option("--predictors", default=None, help="Whose priors to join, comma-separated. Default: those published.")
@force_option
def frame(tables: Path, repo: Path, out: Path, predictors: str | None, force: bool) -> None:
    """Join every impression with what was known before it, through Feast, and check for leaks.

    Needs `feast -c REPO apply` after publishing. Codes of the leak checks: docs/checks.md.
    """
    from ranking.preflight import BASELINE_VIEWS, preflight, published_predictors, view_folder

    read_manifest(tables, fix=_TABLES_FIX)
    names = published_predictors(repo, PREDICTORS) if predictors is None else _predictors(predictors)
    preflight(repo, names)
    views = [*BASELINE_VIEWS, *map(prior_view, names)]
    inputs = {"tables": manifest_digest(tables), **{v: manifest_digest(view_folder(repo, v)) for v in views}}
    # the registry holds the services: a feature added to one must give a new frame
    config = {"predictors": names, "definitions": _definitions_digest(repo)}
    key = run_key("rank frame", config, inputs, FRAME_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank frame: unchanged, reused {out}")
        return
    from feature_repo.tables import write_parquet
    from ranking.frame import FRAME_FILE, build_frame

    with new_run(out, "rank frame", config=config, inputs=inputs, key=key) as run:
        result = build_frame(tables, repo, names)
        write_parquet(result.frame, run.path / FRAME_FILE)
        run.facts.update(result.facts)
    facts = result.facts
    click.echo(
        f"rank frame: {len(result.frame):,} impressions, {sum(map(len, facts['features'].values()))} features, "
        f"priors of {', '.join(names) or 'nobody'}, in {out}"
    )
    for finding in result.warnings:
        click.echo(f"warning {finding.code}: {finding.message} ({finding.docs})", err=True)


FRAME_VERSION = 1  # of what `frame` computes: raise it when the same inputs give another frame


def _predictors(text: str) -> list[str]:
    """Names of a comma-separated option; any published prior_<name> will do."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise AdvpriorError("CFG001", "no predictor is named", where="--predictors", expected=", ".join(PREDICTORS))
    return names


def _definitions_digest(repo: Path) -> str:
    """Digest of what was applied: the definitions and the store's configuration."""
    from feature_repo.runs import digest, sha256_file

    files = sorted(path for path in Path(repo).glob("*") if path.suffix in (".py", ".yaml"))
    return digest({path.name: sha256_file(path) for path in files})
