"""From a project file to its steps: one chain of commands, or one for each of several cut-offs in time."""

from __future__ import annotations

from typing import Any

from advprior.pipeline.chain import FIRST, TABLES, Chain, tables_folder
from advprior.pipeline.settings import Project
from advprior.pipeline.steps import Plan
from advprior.store.contract import TimePlan
from advprior.store.project_files import CUTOFF
from advprior.store.runs import MANIFEST, read_manifest

__all__ = ["FIRST", "make_plan", "tables_facts", "tables_folder", "time_plan"]


def make_plan(project: Project) -> Plan:
    """Steps of a project. What depends on the data's span is filled in once the tables are there."""
    if project.config.origins > 1:
        return _rolling(project)
    chain = Chain(project)
    chain.tables()
    chain.everything()
    return chain.plan()


def tables_facts(project: Project) -> dict[str, Any]:
    """What the manifest of the project's tables says; empty before they are made."""
    folder = project.folder / tables_folder(project)
    return dict(read_manifest(folder)["facts"]) if (folder / MANIFEST).is_file() else {}


def time_plan(project: Project) -> TimePlan | None:
    """Time plan of tables that are made; None before."""
    facts = tables_facts(project)
    return TimePlan.from_json(facts["time_plan"]) if facts else None


def _rolling(project: Project) -> Plan:
    """The chain at several cut-offs, everything refitted at each, then one pooled ablation, two-by-two and report."""
    whole = Chain(project)
    whole.tables()
    origins = project.config.origins
    retrieval = project.config.retrieval is not None and not whole.predictor_only
    folders = {"ablation": "rank pool", **({"two_by_two": "rank pool two-by-two"} if retrieval else {})}
    runs: dict[str, list[str]] = {name: [] for name in folders}
    for number in range(1, origins + 1):
        chain = Chain(project, f"{CUTOFF}{number}", f" (cut-off {number})")
        tables = whole.at(TABLES)
        cut = ("rank", "origin", "--tables", tables, "--number", str(number), "--of", str(origins))
        chain.advprior("rank origin", *cut, out=TABLES, reads=(), also=(tables,))
        chain.measure()
        if retrieval:
            chain.both_steps()
        whole.steps += chain.steps
        whole.files |= chain.files
        for name, of_name in runs.items():
            of_name.append(chain.at(name))
    for name, step in folders.items():
        pooled = ("rank", "pool", *runs[name])
        whole.advprior(step, *pooled, out=name, reads=(), also=tuple(runs[name]), kind="rank pool")
    if project.config.report is not None:
        words = ("rank", "report", "ablation", *(("--two-by-two", "two_by_two") if retrieval else ()))
        words += project.config.price_options
        whole.advprior("rank report", *words, out=project.config.report.folder, reads=tuple(folders))
    return whole.plan()
