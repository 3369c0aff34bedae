"""``advprior finetune``: fit a predictor on the histories before the first snapshot."""

from __future__ import annotations

from pathlib import Path

import click

from advprior.cli.device import device_option
from advprior.cli.hints import next_step
from advprior.store.contract import CATALOG_TEXT, EASE, HYBRID, L3AE, LLM, NEIGHBOURS, POPULARITY, SASREC, ZERO_SHOT

PREDICTORS = (LLM, POPULARITY, NEIGHBOURS, EASE, L3AE, SASREC, HYBRID, CATALOG_TEXT, ZERO_SHOT)


@click.command()
@click.option("--tables", required=True, type=click.Path(path_type=Path), help="Canonical tables (advprior data).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@click.option("--predictor", type=click.Choice(PREDICTORS), default="llm", show_default=True, help="Predictor to fit.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings (YAML). Default: those of the project under configs/."
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting: training.epochs=2. Repeatable."
)
@click.option(
    "--withhold",
    metavar="SHARE|FILE",
    help="Advertisers whose events are kept from fitting: a share of them (0.2), or a file of ids, one a line.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which share is withheld.")
@device_option
@click.option("--force", is_flag=True, help="Fit again even when nothing changed.")
def finetune(
    tables: Path,
    out: Path,
    predictor: str,
    config: Path | None,
    changes: tuple[str, ...],
    withhold: str | None,
    seed: int,
    device: str | None,
    force: bool,
) -> None:
    """Fit a predictor: the LLM, or a control that takes the same path.

    Labels end at the time plan's finetune_end. An interrupted fit goes on after its last whole epoch, on any device.
    With --withhold, some advertisers are known by name and text only, as new ones are: `advprior cold` tells how well
    they are ranked.
    """
    from advprior.history.withheld import choose_withheld
    from advprior.pipeline.fit import finetune as run
    from advprior.pipeline.fit import read_settings
    from advprior.predictors.llm.cut_prompts import cut_lines
    from advprior.predictors.llm.fit_lines import decision_lines
    from advprior.predictors.quality import quality_lines
    from advprior.store.device import computing_on, device_setting, process
    from advprior.store.project_files import SETTINGS_FILES, project_folder
    from advprior.store.runs import read_manifest

    project = None if config is not None else project_folder(tables, out)
    settings = read_settings(predictor, config, changes, project=project)
    if project is not None and (project / SETTINGS_FILES.get(predictor, "")).is_file():
        click.echo(f"settings: {project / SETTINGS_FILES[predictor]}")
    withheld = choose_withheld(tables, withhold, seed) if withhold is not None else ()
    with computing_on(device_setting(device, tables, out)):
        fresh = run(tables, out, predictor, settings, force=force, withheld=withheld)
    if process():  # of several that fit together one writes, and speaks
        return
    if not fresh:
        click.echo(f"finetune {predictor}: unchanged, reused {out}")
        return
    manifest = read_manifest(out)
    facts = manifest["facts"]
    click.echo(
        f"finetune {predictor}: {facts['users']} users, {facts['events']:,} events before {facts['model_cutoff']}, "
        f"{facts['advertisers']} advertisers, {manifest['seconds']:.0f} s -> {out}"
    )
    for line in [*quality_lines(facts), *decision_lines(facts), *cut_lines(facts)]:
        click.echo(f"  {line}")
    next_step(f"advprior export {out}")
