"""``advprior export``: a fitted predictor as an ONNX graph, refused unless it says what the model says."""

from __future__ import annotations

from pathlib import Path

import click

CODE_VERSION = 1


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Export again even when nothing changed.")
def export(run: Path, force: bool) -> None:
    """Export the predictor in RUN (written by `advprior finetune`) to RUN/onnx.

    Runs the graph beside the model on batches from one token to about a thousand, padded ones too, and
    refuses it when any log-probability differs by more than 1e-4.
    """
    from feature_repo.runs import is_current, manifest_digest, new_run, read_manifest, run_key

    manifest = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    predictor = manifest["facts"]["predictor"]
    out = run / "onnx"
    config = {"predictor": predictor}
    inputs = {"model": manifest_digest(run)}
    key = run_key("export", config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        click.echo(f"export: unchanged, reused {out}")
        return

    from advprior.predictors.base import load_predictor

    with new_run(out, "export", config=config, inputs=inputs, key=key) as work:
        facts = load_predictor(run).export(work.path)
        work.facts.update(facts, predictor=predictor)
        size = sum(file.stat().st_size for file in work.path.rglob("*.onnx*"))
    click.echo(
        f"export {predictor}: {size / 1e6:.1f} MB, largest difference from the model {facts['parity']:.1e} "
        f"in log-prob over {facts['cases']} batches -> {out}"
    )
    click.echo(f"  next: advprior score {run} --tables TABLES --out PRIORS")
