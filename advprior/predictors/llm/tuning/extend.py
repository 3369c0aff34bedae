"""New advertisers for a fitted predictor, from their names and texts alone: rows without retraining.

An LLM run gives a new advertiser the part of its head that reads names, ``K(E_name)·Q``, without the free part that
only events could teach; its input token starts, as everyone's did, at the mean of its name's tokens. Its bias
is the mean of the fitted ones: a bias says how much more an advertiser is turned to than habit and drift tell, and of a
new one nothing of the kind can be learnt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advprior.history.catalog import Catalog
from advprior.predictors.extension import copy_beside, places
from advprior.predictors.llm.saved_prompt import load_style, saved_encoder
from advprior.predictors.llm.tuning.model import AdvertiserConfig, AdvertiserModel
from advprior.predictors.tokens import readable
from advprior.predictors.tuning.base import load_base
from advprior.predictors.tuning.encode import mean_states
from advprior.store.arrays import Float
from advprior.store.contract import CATALOG_FILE
from advprior.store.errors import AdvpriorError

NAME_HEAD = "name_head.npz"
FITTED_CATALOG = "fitted_catalog.json"  # of an extended run: the catalog that standardises the names
TEXT_TOKENS = 96  # of a name and text together that a head reads
_WHOLE_NAME = 512  # tokens
NAMES_DRIFT = 0.01  # of the largest number in the fitted names' encodings: another base is off by far more


def save_name_head(out: Path, head: nn.Module) -> None:
    """Keep what gives a new advertiser its row: K [rank, E], Q [rank, H], and the fitted names' encodings [N, E]."""
    state = head.state_dict()
    parts = {"key": "key.weight", "query": "query.weight", "names": "names"}
    np.savez(out / NAME_HEAD, **{part: state[name].numpy() for part, name in parts.items()})


def extend_llm(run: Path, catalog: Catalog, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the LLM run with rows for ``catalog``, which holds all of the run's advertisers, into ``out``.

    Raises
    ------
    AdvpriorError
        ``PRI064`` when the run cannot give rows from names: a random-weight control, an old run, or another base.
    """
    if settings.get("twin") or not (run / NAME_HEAD).is_file():
        raise AdvpriorError(
            "PRI064",
            "this run cannot give a new advertiser a row",
            where=str(run),
            actual="a random-weight control, which cannot read names" if settings.get("twin") else f"no {NAME_HEAD}",
            expected="an LLM that keeps how it reads names",
            fix="advprior finetune, with the new advertisers",
        )
    origin = run / FITTED_CATALOG if (run / FITTED_CATALOG).is_file() else run / CATALOG_FILE
    fitted = Catalog.load(origin)
    before, new = places(Catalog.load(run / CATALOG_FILE), catalog)
    rows, drift = _rows(run, fitted, catalog, new, settings)
    model = AdvertiserModel.from_pretrained(run / "model").eval()
    wide = AdvertiserModel(AdvertiserConfig.from_dict({**model.config.to_dict(), "catalog_size": len(catalog)})).eval()
    text, table_name = int(model.config.text_vocab_size), _table_name(model)
    state = dict(model.state_dict())
    table, adapter, bias = state[table_name], state["adapter.weight"], state["head.bias"]
    names = catalog.to_read(masked=bool(settings.get("masked"))).names
    tokens = _name_embeddings(run, [names[i] for i in new], [catalog.ids[i] for i in new], table)
    state[table_name] = torch.cat([table[:text], _merge(table[text:], tokens, before, new)])
    untuned = torch.zeros(len(new), adapter.shape[1])
    state["adapter.weight"] = torch.cat([adapter[:1], _merge(adapter[1:], untuned, before, new)])
    state["head.weight"] = _merge(state["head.weight"], torch.from_numpy(rows), before, new)
    state["head.bias"] = _merge(bias, bias.mean().expand(len(new)), before, new)
    wide.load_state_dict(state)
    copy_beside(run, out)
    wide.save_pretrained(out / "model")
    fitted.save(out / FITTED_CATALOG)
    catalog.save(out / CATALOG_FILE)
    return {"new_advertisers": [catalog.ids[i] for i in new], "names_drift": drift}


def _rows(
    run: Path, fitted: Catalog, catalog: Catalog, new: list[int], settings: dict[str, Any]
) -> tuple[Float, float]:
    """Head rows [len(new), H] of the advertisers at ``new`` of the catalog, and how far fitted names have moved."""
    with np.load(run / NAME_HEAD) as saved:
        key, query, names = saved["key"], saved["query"], saved["names"]
    texts = bool(settings.get("texts"))  # whether the head reads what an advertiser sells, too
    encode = saved_encoder(run)
    read = [c.to_read(masked=bool(settings.get("masked"))) for c in (fitted, catalog)]
    fitted_texts, wanted_texts = (readable(c.descriptions() if texts else c.names, c.ids, encode) for c in read)
    base = load_base(settings["base"], layers=int(settings["layers"]), context=load_style(run).context)
    most = TEXT_TOKENS if texts else _WHOLE_NAME
    encodings = mean_states(
        base.model, [encode(text)[:most] for text in (*fitted_texts, *(wanted_texts[i] for i in new))]
    )
    # as `NameHead` standardised them; the same encodings must come out, or the base model is another
    again = torch.from_numpy(encodings[: len(fitted)])
    mean, spread = again.mean(0), again.std(0) + 1e-6
    standard = ((torch.from_numpy(encodings) - mean) / spread / encodings.shape[1] ** 0.5).numpy()
    drift = float("inf")
    if names.shape == again.shape:
        drift = float(np.abs(standard[: len(fitted)] - names).max() / np.abs(names).max())
    if not drift <= NAMES_DRIFT:
        raise AdvpriorError(
            "PRI064",
            "the base model does not encode the fitted names as it did",
            where=settings["base"],
            actual=f"a difference of {drift:.1e} of their size",
            expected=f"at most {NAMES_DRIFT:.0e}, with the base model of the run",
            fix="set up the same base model again",
        )
    return (standard[len(fitted) :] @ key.T @ query).astype(np.float32), drift


def _merge(old: torch.Tensor, fresh: torch.Tensor, before: list[int], new: list[int]) -> torch.Tensor:
    """Old rows and fresh ones at their places in the new catalog."""
    out = torch.empty(len(before) + len(new), *old.shape[1:])
    out[before], out[new] = old, fresh
    return out


def _table_name(model: AdvertiserModel) -> str:
    """State-dict name of the token table, which each architecture and each mode of tuning has elsewhere."""
    table = model.token_table().weight
    name: str = next(name for name, weight in model.named_parameters() if weight is table)
    return name


def _name_embeddings(run: Path, names: list[str], ids: list[str], table: torch.Tensor) -> torch.Tensor:
    """Mean input embedding of each name's tokens."""
    encode = saved_encoder(run)
    return torch.stack([table[torch.tensor(encode(text))].mean(0) for text in readable(names, ids, encode)])
