"""An LLM that was fitted on histories, as an encoder of texts: what events taught its upper layers shows in them
(arXiv 2506.21579)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from advprior.predictors.llm.saved_prompt import saved_encoder
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.predictors.tuning.encode import TextEncoder
from advprior.predictors.tuning.reading import Reading, decoder_rows
from advprior.store.contract import LLM
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, read_manifest


def fitted_encoder(run: Path, reading: Reading) -> TextEncoder:
    """The network of an LLM run, whose last state is read; its advertiser tokens stand in no text.

    Raises
    ------
    AdvpriorError
        ``PRI083`` for a run of another predictor, or layers other than all that the run has.
    """
    fitted = read_manifest(run, step="finetune", fix="advprior finetune --predictor llm --tables TABLES --out RUN")
    kind = fitted["facts"]["predictor"]
    if kind != LLM:
        raise _refused(run, f"a run of predictor {kind}", f"a run of predictor {LLM}", "name an LLM run, or its base")
    model = AdvertiserModel.from_pretrained(run / "model").eval()
    config = model.config.decoder()
    layers = int(config.num_hidden_layers)
    if reading.layers not in (None, layers, (layers, layers)):
        raise _refused(run, f"layers: {reading.layers}", f"all {layers} layers of the run", "leave `layers` out")
    encode = saved_encoder(run)
    marks = (config.bos_token_id, config.eos_token_id)
    rows = decoder_rows(
        encode,
        reading,
        bos=next((mark for mark in marks if isinstance(mark, int)), 0),
        separator=encode("\n"),
        limit=model.config.longest(),
    )

    def states(ids: torch.Tensor, mask: torch.Tensor) -> Sequence[torch.Tensor]:
        return [model.upper_states(model.lower_states(ids, mask), ids, mask)]

    origin = {
        **{"source": str(run), "kind": "fitted run", "file": run.name, "sha256": manifest_digest(run)},
        **{"layers": layers, "of_layers": layers, "encoder": "language model fitted on histories"},
        "pooling": reading.pooling or "mean",
        "read_layers": [layers, layers],
        "twin": bool(fitted["config"]["settings"].get("twin")),
    }
    return TextEncoder(model, rows, states, origin)


def _refused(run: Path, actual: str, expected: str, fix: str) -> AdvpriorError:
    return AdvpriorError(
        "PRI083", "this run cannot encode texts so", where=str(run), actual=actual, expected=expected, fix=fix
    )
