"""The dear steps of a world: a fitted predictor, evaluation, retrieval, and a service that is asked."""

from __future__ import annotations

import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.store.contract import AD_ID, CONTEXT_PREFIX, USER_ID
from advprior.store.tables import load_time_plan
from tests.tiny_llm import write_tiny_llm

if TYPE_CHECKING:
    from tests.fuzz.chain import Chain

#: Settings that make each predictor as small as it can be.
SETTINGS: dict[str, tuple[str, ...]] = {
    "text": ("layers=2", "components=4", "points=200"),
    "sasrec": ("network.width=8", "network.layers=1", "training.epochs=1", "valid_days=3", "horizon_days=3"),
    "llm": (
        *("layers=3", "tuned_layers=1", "training.epochs=1", "training.rank=4", "training.valid_days=3"),
        *("horizon_days=3", "prompt.context=128"),
    ),
}


@cache
def base() -> Path:
    """A tiny random LLM, written once."""
    return write_tiny_llm(Path(tempfile.mkdtemp(prefix="fuzz-llm-")) / "base")


def through(chain: Chain, tables: Path, cheap: str) -> None:
    """Everything that comes after the first ranker."""
    from tests.fuzz.chain import prior

    name = list(SETTINGS)[chain.world.seed // 12 % 3]
    settings = [*SETTINGS[name], *([f"base={base()}"] if name != "sasrec" else [])]
    prior(chain, tables, name, *(word for setting in settings for word in ("--set", setting)))
    evaluation = chain.folder / "evaluation.json"
    cutoff = load_time_plan(tables).finetune_end.isoformat()
    asked = ["--cutoff", cutoff, "--horizon", "14d", "--replicates", 10, "--out", evaluation, "--threads", 1]
    chain.command("evaluate", chain.folder / name, "--tables", tables, *asked)
    _retrieval(chain, tables, cheap)
    _service(chain, tables)


def _retrieval(chain: Chain, tables: Path, cheap: str) -> None:
    folder, repo = chain.folder, chain.folder / "project" / "feature_repo"
    small = ["--size", 4, "--epochs", 1, "--threads", 1]
    chain.command("rank", "towers", "--tables", tables, "--out", folder / "towers", *small)
    some = ["--predictors", cheap, "--k", 5, "--replicates", 20]
    places = ["--tables", tables, "--repo", repo, "--towers", folder / "towers", "--out", folder / "candidates"]
    chain.command("rank", "candidates", *places, *some)


def _service(chain: Chain, tables: Path) -> None:
    """Every kind of user and request is answered, with all its ads once and finite scores."""
    from ranking.frame.join import open_store

    folder, repo = chain.folder, chain.folder / "project" / "feature_repo"
    words = ["--frame", folder / "frame", "--arms", folder / "arms.yaml"]
    chain.command("rank", "train", *words, "--arm", "baseline", "--out", folder / "plain")
    plan = load_time_plan(tables)
    store = chain.step("feast materialize", lambda: open_store(repo))
    chain.step("feast materialize", lambda: store.materialize(plan.start, plan.end))
    broken = chain.step("serve", lambda: _answers(chain, tables))
    chain.check("serve", broken)


def _answers(chain: Chain, tables: Path) -> list[str]:
    from ranking.service.app import create_app
    from ranking.service.engine import Engine
    from ranking.service.resources import EngineOptions
    from ranking.service.settings import ServeSettings
    from tests.service.workspaces import FixedClock

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient

    folder, repo = chain.folder, chain.folder / "project" / "feature_repo"
    settings = ServeSettings.model_validate(
        {
            "repo": repo,
            "ranker": folder / "ranker",
            "fallback": folder / "plain",
            "api_key": False,
            "compile": False,
        }
    )
    clock = FixedClock(load_time_plan(tables).end)
    engine = Engine(EngineOptions(repo, folder / "ranker", folder / "plain", clock=clock))
    engine.resources.refresh_ads()
    broken: list[str] = []
    with TestClient(create_app(settings, engine)) as client:
        for body in _requests(tables):
            answer = client.post("/rank", json=body)
            broken += _wrong(body, answer.status_code, answer.json())
    return broken


def _requests(tables: Path) -> list[dict[str, Any]]:
    users, ads = pd.read_parquet(tables / "users.parquet"), pd.read_parquet(tables / "ads.parquet")
    shown = pd.read_parquet(tables / "impressions.parquet")
    context = {}
    for name in (str(column) for column in shown if str(column).startswith(CONTEXT_PREFIX)):
        value = shown[name].iloc[0]
        context[name] = value.item() if isinstance(value, np.generic) else value
        if value is None or value != value:
            context[name] = None
    names = ads[AD_ID].tolist()
    some = [{"user_id": user, "slots": 3} for user in (users[USER_ID].iloc[0], users[USER_ID].iloc[-1], "nobody")]
    listed = {"user_id": users[USER_ID].iloc[0], "slots": 100, "candidates": [*names[:90], "no such ad"]}
    return [*some, listed, {**some[0], "candidates": names[:90], "context": context}]


def _wrong(body: dict[str, Any], status: int, answer: Any) -> list[str]:
    if status != 200:
        return [f"status {status} for {str(body)[:120]}: {str(answer)[:200]}"]
    scores = [one["score"] for one in answer["slots"]]
    ids = [one["ad_id"] for one in answer["slots"]]
    broken = []
    if not np.isfinite(scores).all():
        broken.append(f"scores that are not finite: {scores[:5]}")
    if len(set(ids)) != len(ids) or ("candidates" in body and not set(ids) <= set(body["candidates"])):
        broken.append(f"ads of an answer are not those of the request, each once: {ids[:5]}")
    wanted = min(body["slots"], len(body.get("candidates", ids)))
    if len(ids) != wanted:
        broken.append(f"{len(ids)} ads for {wanted} slots")
    return broken
