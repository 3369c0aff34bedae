"""``advprior export``: a fitted predictor as an ONNX graph, refused unless it says what the model says."""

from __future__ import annotations

from pathlib import Path

import click

from advprior.cli.hints import next_step

CODE_VERSION = 4


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="For GPUs; any but fp32 passes a quality gate first: it needs --tables.",
)
@click.option(
    "--attention",
    type=click.Choice(["blocks", "fused"]),
    default="blocks",
    show_default=True,
    help="Spelled out, for CPUs, or ONNX Runtime's own operator, for GPUs.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]",
    help="Where it will score, and so where the gate measures.",
)
@click.option("--tables", type=click.Path(path_type=Path), help="Canonical tables to measure the damage on.")
@click.option("--force", is_flag=True, help="Export again even when nothing changed.")
def export(run: Path, precision: str, attention: str, device: str, tables: Path | None, force: bool) -> None:
    """Export the predictor in RUN (written by `advprior finetune`) to RUN/onnx.

    Runs the graph beside the model on batches from one token to about a thousand, padded ones too, and
    refuses it when a log-probability differs by more than rounding. A graph in another precision than fp32 is refused
    when it changes the priors of real users by too much on the device; the one in fp32 is the better one then.
    """
    from advprior.store.errors import AdvpriorError
    from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key

    manifest = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    predictor = manifest["facts"]["predictor"]
    out = run / "onnx"
    config = {"predictor": predictor}
    inputs = {"model": manifest_digest(run)}
    if (precision, attention) != ("fp32", "blocks"):
        if tables is None:
            raise AdvpriorError(
                "PRI016",
                f"what {precision} with {attention} attention damages is measured on real histories",
                where="--tables",
                actual="nothing",
                expected="canonical tables",
                fix=f"advprior export {run} --precision {precision} --attention {attention} --tables TABLES",
            )
        config |= {"precision": precision, "attention": attention, "device": device}
        inputs["tables"] = manifest_digest(tables)
    key = run_key("export", config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        click.echo(f"export: unchanged, reused {out}")
        return

    from advprior.predictors.registry import load_predictor

    with new_run(out, "export", config=config, inputs=inputs, key=key) as work:
        facts = load_predictor(run).export(work.path)
        work.facts.update(facts, predictor=predictor, precision=precision)
        if (precision, attention) != ("fp32", "blocks") and tables is not None:
            from advprior.pipeline.precision import Reduction, reduce_export

            reduced = reduce_export(run, work.path, tables, Reduction(precision, attention, device))
            # size and digest are the reduced graph's: the manifest lists them
            work.facts.update(reduced | {"bytes": None, "sha256": None})
        size = sum(file.stat().st_size for file in work.path.rglob("*.onnx*"))
    click.echo(
        f"export {predictor}: {size / 1e6:.1f} MB, largest difference from the model {facts['parity']:.1e} "
        f"in log-prob over {facts['cases']} batches -> {out}"
    )
    if "damage" in work.facts:
        lost, gate = work.facts["damage"], work.facts["gate"]
        click.echo(
            f"  {precision} on {gate['device']}: log-probs off by {lost['mean_difference']:.1e} on average, "
            f"{lost['max_difference']:.1e} at most; {lost['top10_overlap']:.1%} of the ten likeliest kept; "
            f"NLL {lost['nll_change']:+.4f}"
        )
    next_step(f"advprior score {run} --tables TABLES --out PRIORS")
