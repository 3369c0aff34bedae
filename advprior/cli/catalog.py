"""``advprior catalog``: the list of advertisers that priors are normalised over, its versions, and new entries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advprior.cli.device import device_option
from advprior.cli.hints import next_step

if TYPE_CHECKING:
    from advprior.history.catalog import Catalog

CODE_VERSION = 1


@click.group()
def catalog() -> None:
    """Show, compare and extend the list of advertisers."""


@catalog.command()
@click.argument("path", metavar="RUN|TABLES", type=click.Path(path_type=Path))
@click.option("--all", "everyone", is_flag=True, help="List every advertiser.")
def show(path: Path, everyone: bool) -> None:
    """Version and contents of the catalog of a run, of published priors, or of tables."""
    listed = read(path)
    described = sum(bool(text) for text in listed.texts)
    click.echo(f"catalog {listed.version}: {len(listed)} advertisers, {described} with a text")
    texts = listed.texts or ("",) * len(listed)
    shown = len(listed) if everyone else min(len(listed), 5)
    for advertiser, name, text in list(zip(listed.ids, listed.names, texts, strict=True))[:shown]:
        click.echo(f"  {advertiser}  {name}{'  | ' + text[:60] if text else ''}")
    if shown < len(listed):
        click.echo(f"  … {len(listed) - shown} more (--all)")


@catalog.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def diff(old: Path, new: Path) -> None:
    """What NEW adds, removes, renames and describes otherwise than OLD (runs or tables)."""
    before, after = read(old), read(new)
    click.echo(f"{before.version} -> {after.version}{': the same' if before.version == after.version else ''}")
    for what, ids in changes(before, after).items():
        if ids:
            click.echo(f"  {len(ids)} {what}: {', '.join(ids[:8])}{', …' if len(ids) > 8 else ''}")


@catalog.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tables", required=True, type=click.Path(path_type=Path), help="Tables with the new advertisers.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@device_option
@click.option("--force", is_flag=True, help="Extend again even when nothing changed.")
def extend(run: Path, tables: Path, out: Path, device: str | None, force: bool) -> None:
    """Give a fitted RUN the new advertisers of TABLES, from their names and texts, without retraining."""
    from advprior.store.contract import CATALOG_FILE
    from advprior.store.device import computing_on, device_setting
    from advprior.store.errors import AdvpriorError
    from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key

    manifest = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    kind, settings = manifest["facts"]["predictor"], manifest["config"]["settings"]
    config = {**manifest["config"], "extended_with": manifest_digest(tables)}
    inputs = {"run": manifest_digest(run), "tables": manifest_digest(tables)}
    key = run_key("extend", config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        click.echo(f"extend: unchanged, reused {out}")
        return
    ours, wanted = read(run), read(tables)
    gone = changes(ours, wanted)
    if gone["removed"] or gone["renamed"] or not gone["added"]:
        raise AdvpriorError(
            "PRI065",
            "these tables do not extend the run's catalog",
            where=f"{tables} against {run / CATALOG_FILE}",
            actual=f"{len(gone['added'])} added, {len(gone['removed'])} removed, {len(gone['renamed'])} renamed",
            expected="every advertiser of the run under its name, and new ones beside them",
            fix=f"advprior catalog diff {run} {tables}",
        )
    if kind not in ("llm", "text"):
        raise AdvpriorError(
            "PRI066",
            f"predictor {kind} cannot be extended",
            where=str(run),
            expected="llm or text",
            fix=f"advprior finetune --predictor {kind} --tables {tables}, which is quick",
        )

    with (
        computing_on(device_setting(device, run, tables, out)),
        new_run(out, "finetune", config=config, inputs=inputs, key=key) as made,
    ):
        if kind == "llm":
            from advprior.predictors.llm.tuning.extend import extend_llm

            facts: dict[str, Any] = extend_llm(run, wanted, settings, made.path)
        else:
            from advprior.predictors.text.extend import extend_text

            facts = extend_text(run, wanted, made.path)
        made.facts.update(manifest["facts"])
        made.facts.update(facts, catalog_version=wanted.version, advertisers=len(wanted), extended_from=ours.version)
    click.echo(f"extend {kind}: {len(facts['new_advertisers'])} new advertisers, catalog {wanted.version} -> {out}")
    next_step(f"advprior export {out}")


def read(path: Path) -> Catalog:
    """The catalog of a run or of published priors (``catalog.json``), or of tables (``advertisers.parquet``).

    Raises
    ------
    AdvpriorError
        ``PRI067`` when the folder holds neither.
    """
    from advprior.history.catalog import Catalog
    from advprior.store.contract import ADVERTISERS, CATALOG_FILE
    from advprior.store.errors import AdvpriorError
    from advprior.store.tables import read_parquet

    if (path / CATALOG_FILE).is_file():
        return Catalog.load(path / CATALOG_FILE)
    table = path / f"{ADVERTISERS}.parquet"
    if table.is_file():
        return Catalog.from_table(read_parquet(table))
    raise AdvpriorError(
        "PRI067",
        "no catalog here",
        where=str(path),
        actual=f"neither {CATALOG_FILE} nor {ADVERTISERS}.parquet",
        expected="a finetune run, published priors, or tables",
    )


def changes(before: Catalog, after: Catalog) -> dict[str, list[str]]:
    """Ids that were added, removed, renamed, or whose text differs; sorted."""
    old = dict(zip(before.ids, before.names, strict=True))
    new = dict(zip(after.ids, after.names, strict=True))
    both = set(old) & set(new)
    old_text = dict(zip(before.ids, before.texts, strict=False))
    new_text = dict(zip(after.ids, after.texts, strict=False))
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "renamed": sorted(a for a in both if old[a] != new[a]),
        "described otherwise": sorted(a for a in both if old_text.get(a, "") != new_text.get(a, "")),
    }
