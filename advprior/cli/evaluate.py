"""``advprior evaluate``: the ladder of predictors on canonical tables."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advprior.cli.device import device_option
from advprior.evaluation.show import FORMATS

if TYPE_CHECKING:
    from advprior.evaluation.options import Seeds


class Moment(click.ParamType):  # type: ignore[type-arg]
    """An ISO date or time, UTC where it names no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no ISO date or time, e.g. 2022-01-01", param, ctx)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Moments(Moment):
    """Several of them, with commas between."""

    name = "times"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        return tuple(super(Moments, self).convert(part.strip(), param, ctx) for part in str(value).split(","))


class Sizes(click.ParamType):  # type: ignore[type-arg]
    """Numbers of users with commas between, the last one perhaps ``all``."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part == "all" or (part.isdigit() and int(part) > 0) for part in parts):
            self.fail(f"{value!r} are no numbers of users, e.g. 100,300,1000,all", param, ctx)
        numbers = sorted({int(part) for part in parts if part != "all"})
        return (*numbers, None) if "all" in parts else tuple(numbers)


class Span(click.ParamType):  # type: ignore[type-arg]
    """A whole number of hours, days or weeks."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        match = re.fullmatch(r"0*([1-9][0-9]{0,4})([hdw])", str(value))
        if not match:
            self.fail(f"{value!r} is no span, e.g. 365d, 8w or 12h", param, ctx)
        return int(match[1]) * {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(days=7)}[match[2]]


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option("--tables", required=True, type=click.Path(path_type=Path), help="Canonical tables (advprior data).")
@click.option("--cutoff", type=Moment(), help="History lies before, labels from here on: 2022-01-01.")
@click.option(
    "--learning-curve",
    "sizes",
    type=Sizes(),
    metavar="100,300,all",
    help="Refit on so many random users, at each of --cutoffs: when does a prior from texts pay?",
)
@click.option("--cutoffs", type=Moments(), metavar="T1,T2,T3", help="Of --learning-curve.")
@click.option("--draws", type=click.IntRange(1), default=3, show_default=True, help="Of users, in --learning-curve.")
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME[@SETTING]",
    help="Whose encodings of texts --learning-curve measures, several times: a language model or sentence encoder by "
    "Hugging Face id, path or installed package, or the run of a fitted LLM. SETTING: mean, skip_first, echo, layers=8 "
    "or layers=8-12, with commas between. By default the one of the text prior.",
)
@click.option(
    "--mask-names",
    is_flag=True,
    help="In --learning-curve, also read all texts without advertisers' names: is a gain memory of brands?",
)
@click.option("--layers", type=click.IntRange(1), help="Of each --encoder that names none; by default as of text.")
@click.option(
    "--horizon",
    type=Span(),
    help="How far labels are looked for: 365d by default; in --learning-curve, as far as the data's span allows.",
)
@click.option(
    "--tested", type=click.IntRange(1), default=4000, show_default=True, help="Users tested in --learning-curve."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json", help="Where to write.")
@click.option(
    "--earlier",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Once for each RUN: the same predictor, fitted before the labels that weigh it in the blend.",
)
@click.option(
    "--seeds",
    type=click.Choice(["together", "averaged", "apart"]),
    default="together",
    show_default=True,
    help="RUNs whose fits differ in nothing but their seed: one arm with their mean figures, one that "
    "averages their answers, or an arm each.",
)
@click.option(
    "--profile-only",
    type=click.IntRange(0),
    default=4000,
    show_default=True,
    metavar="USERS",
    help="Most users without an event before the cut-off to ask about, apart from all others.",
)
@click.option("--replicates", type=click.IntRange(10), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap and of ALS.")
@click.option("--users", type=click.IntRange(1), help="Ask about so many users only, drawn by --seed: for costly arms.")
@device_option
@click.option("--threads", type=click.IntRange(1), help="Threads of ONNX Runtime; default: real cores.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="What is printed: text, or Markdown tables.",
)
@click.option("--force", is_flag=True, help="Evaluate again even when nothing changed.")
def evaluate(
    runs: tuple[Path, ...],
    tables: Path,
    cutoff: datetime | None,
    sizes: tuple[int | None, ...] | None,
    cutoffs: tuple[datetime, ...] | None,
    draws: int,
    encoders: tuple[str, ...],
    mask_names: bool,
    layers: int | None,
    horizon: timedelta | None,
    tested: int,
    out: Path | None,
    earlier: tuple[Path, ...],
    seeds: Seeds,
    profile_only: int,
    replicates: int,
    seed: int,
    users: int | None,
    device: str | None,
    threads: int | None,
    form: str,
    force: bool,
) -> None:
    """Who names a user's next advertiser best? Each exported RUN against the controls that need none.

    Asks about every user of TABLES with an event before the cut-off and one within the horizon after it. RUNs without
    an LLM join the blend of all controls; each with one is compared with it, and with the best control, alone and as an
    addition. Intervals are paired bootstraps by user, and by seed where an arm has several.
    """
    from advprior.store.device import computing_on, device_setting

    place = device_setting(device, tables, out)
    if sizes is not None:
        if runs or cutoff is not None or not cutoffs or out is None:
            raise click.UsageError("--learning-curve takes --cutoffs and --out, and neither RUNs nor --cutoff")
        with computing_on(place):
            _learning_curve(tables, (sizes, cutoffs, draws, encoders, layers, horizon, tested, seed, mask_names), out)
        return
    if cutoff is None:
        raise click.UsageError("Missing option '--cutoff' (or --learning-curve with --cutoffs).")
    from advprior.evaluation.ladder import evaluate as work
    from advprior.evaluation.options import Options
    from advprior.evaluation.show import render

    options = Options(
        horizon=horizon or timedelta(days=365),
        earlier=earlier,
        seeds=seeds,
        profile_only=profile_only,
        replicates=replicates,
        seed=seed,
        users=users,
        device=place,
        threads=threads,
    )
    result, fresh = work(runs, tables, cutoff, options, out=out, force=force)
    if not fresh:
        click.echo(f"evaluate: unchanged, reused {out}")
    for line in render(result, form):
        click.echo(line)
    if out is not None and fresh:
        click.echo(f"evaluate: {result['about']['seconds']:.0f} s -> {out}")


def _learning_curve(tables: Path, options: tuple[Any, ...], out: Path) -> None:
    """Measure a learning curve, print its pooled rows and its sentence, draw it."""
    from advprior.evaluation.learning_curve.encoders import DEFAULT
    from advprior.evaluation.learning_curve.plots import draw
    from advprior.evaluation.learning_curve.run import learning_curve
    from advprior.evaluation.learning_curve.show import lines
    from advprior.evaluation.learning_curve.work import CurveOptions

    sizes, cutoffs, draws, encoders, layers, horizon, tested, seed, mask_names = options
    chosen = CurveOptions(
        sizes,
        cutoffs,
        draws,
        encoders or (DEFAULT,),
        layers=layers,
        tested=tested,
        horizon_days=None if horizon is None else max(horizon.days, 1),
        seed=seed,
        masked=mask_names,
    )
    result = learning_curve(tables, chosen, out)
    picture = out.with_suffix(".svg")
    draw(result, picture)
    for line in lines(result):
        click.echo(line)
    click.echo(f"evaluate: {result['about']['cpu_seconds']:.0f} CPU-seconds -> {out}, {picture}")
