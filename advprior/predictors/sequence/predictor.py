"""SASRec and the hybrid: predictors that read the order of a user's events.

The *hybrid* starts each advertiser from what a language model makes of its name and text; SASRec knows advertisers by
their ids alone, and stands in every table as the control that an LLM has to beat. Scoring needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from advprior.history.counts import DAY, crowd_of
from advprior.history.histories import Histories
from advprior.predictors.base import CATALOG_TEXTS, EVERYONE, MASKED_TEXTS, OWN, FitData, Predictor, Scorer
from advprior.predictors.deadline import Deadline
from advprior.predictors.encoding.encode import encode, pretrained, saw_labels
from advprior.predictors.logit import log_softmax
from advprior.predictors.offset import Offset
from advprior.predictors.quality import SEEN
from advprior.predictors.sequence.settings import EncoderSettings, HybridSettings, SequenceSettings
from advprior.predictors.sequence.tokens import Tokens, Vocabulary, windows
from advprior.runtime.batching import length_batches
from advprior.store.arrays import Float, Int
from advprior.store.contract import CATALOG_FILE, HYBRID, SASREC

ENCODINGS, PARAMETERS = "encodings.npy", "parameters.json"
BATCH_TOKENS = 4096
CELLS = 8_000_000  # of points × advertisers: fewer points at once where the catalog is large


class SASRecPredictor(Predictor):
    """A causal transformer over events, on top of drift and habit."""

    kind = SASREC
    uses_llm = False

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        raw: dict[str, Any] = json.loads((self.run / PARAMETERS).read_text())
        self.fitted = type(self).settings(raw["settings"])
        self.offset = Offset.from_json(raw["offset"])
        vocabulary = raw["vocabulary"]
        self.vocabulary = Vocabulary(
            tuple(vocabulary["categories"]),
            tuple(vocabulary["profile_fields"]),
            tuple(map(tuple, vocabulary["profile_levels"])),
        )

    @property
    def reads_profile(self) -> bool:  # type: ignore[override]
        """Whether it was fitted on users with a profile: its first token is theirs."""
        return any(self.vocabulary.profile_levels)

    @property
    def reads(self) -> tuple[str, ...]:
        profile = ", ".join(f"`profile_{field}`" for field in self.vocabulary.profile_fields)
        return (
            EVERYONE,
            f"{OWN}, in their order",
            *(("the category of each event",) if self.vocabulary.categories else ()),
            "the value of each event, where it has one",
            *((f"the profile ({profile})",) if self.reads_profile else ()),
        )

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> SequenceSettings:
        return SequenceSettings(**raw)

    @classmethod
    def fit(cls, data: FitData, settings: SequenceSettings, out: Path) -> dict[str, Any]:
        from advprior.predictors.sequence.tuning.train import fit_sequence

        facts = fit_sequence(data, settings, out)
        data.catalog.save(out / CATALOG_FILE)
        return facts

    def encodings(self) -> Float | None:
        """What the network knows of the advertisers' texts [N, D]."""
        return None

    def export(self, out: Path) -> dict[str, Any]:
        from advprior.predictors.sequence.tuning.export import export_sequence

        return export_sequence(self.run, out, len(self.catalog), self.vocabulary, self.fitted, self.encodings())

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        return _SequenceScorer(self, onnx, device, threads)


class HybridPredictor(SASRecPredictor):
    """The same network, whose advertisers start from a language model's encodings of their texts."""

    kind = HYBRID

    @property
    def uses_llm(self) -> bool:  # type: ignore[override]
        """Whether pre-trained weights are behind it: not so for the lexical and the random-weight control."""
        assert isinstance(self.fitted, HybridSettings)
        return pretrained(self.run, self.fitted.encoder)

    @property
    def reads(self) -> tuple[str, ...]:
        assert isinstance(self.fitted, HybridSettings)
        return (*super().reads, MASKED_TEXTS if self.fitted.encoder.masked else CATALOG_TEXTS)

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> HybridSettings:
        return HybridSettings(**raw)

    @classmethod
    def fit(cls, data: FitData, settings: SequenceSettings, out: Path) -> dict[str, Any]:
        from advprior.predictors.sequence.tuning.train import fit_sequence

        assert isinstance(settings, HybridSettings)
        deadline = Deadline(settings.training.max_minutes)
        encodings, origin = encode_catalog(data, settings.encoder, settings.training.seed, deadline)
        np.save(out / ENCODINGS, encodings)
        facts = fit_sequence(data, settings, out, encodings, deadline)
        if facts["valid"] and saw_labels(settings.encoder, data.cutoff - int(settings.valid_days * DAY)):
            facts["valid"][SEEN] = True
        data.catalog.save(out / CATALOG_FILE)
        return {**settings.encoder.origin_facts(origin), **facts}

    def encodings(self) -> Float | None:
        encodings: Float = np.load(self.run / ENCODINGS)
        return encodings


def encode_catalog(
    data: FitData, settings: EncoderSettings, seed: int, deadline: Deadline | None = None
) -> tuple[Float, dict[str, Any]]:
    """Whitened principal components [N, D] of what the encoder makes of each name and text, and what it is."""
    texts = data.catalog.to_read(masked=settings.masked).descriptions()
    encodings, origin = encode(texts, settings, seed=seed, cutoff=data.cutoff, deadline=deadline)
    centred = encodings - encodings.mean(0)
    left, spread, _ = np.linalg.svd(centred, full_matrices=False)
    count = max(min(settings.components, int((spread > spread[0] * 1e-5).sum())), 1)  # one where all texts are alike
    # unit variance each: few advertisers, so that no direction is too faint to matter
    return (left[:, :count] * np.sqrt(len(texts) / count)).astype(np.float32), origin


class _SequenceScorer(Scorer):
    def __init__(self, predictor: SASRecPredictor, onnx: Path, device: str, threads: int | None) -> None:
        from advprior.runtime.session import open_session

        self._session = open_session(onnx / "model.onnx", device=device, threads=threads, many=True, small=True)
        self.provider = self._session.provider
        self._vocabulary, self._offset = predictor.vocabulary, predictor.offset
        self.half_lives = self._offset.terms.popular
        self._context = predictor.fitted.network.context
        self._size = len(predictor.catalog)
        self._seen: tuple[Histories, Tokens] | None = None
        self._drift: tuple[object, bytes, Float] | None = None

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        out = np.empty((len(users), len(cutoffs), self._size), np.float32)
        step = max(CELLS // max(len(cutoffs) * self._size, 1), 1)
        for start in range(0, len(users), step):
            part = users[start : start + step]
            user, moment = np.repeat(part, len(cutoffs)), np.tile(cutoffs, len(part))
            out[start : start + step] = self._points(histories, user, moment, cutoffs).reshape(
                len(part), len(cutoffs), self._size
            )
        return out

    def _points(self, histories: Histories, user: Int, moment: Int, cutoffs: Int) -> Float:
        if self._seen is None or self._seen[0] is not histories:
            self._seen = (histories, Tokens(histories, self._vocabulary))
        tokens = self._seen[1]
        drift = np.tile(self._popular(histories, cutoffs), (1, len(user) // max(len(cutoffs), 1), 1))
        offset = self._offset(np.concatenate([drift, self._offset.terms.habit(histories, user, moment, self._size)]))
        out = np.empty((len(user), self._size), np.float32)
        every = list(windows(histories, user, moment, self._context))
        batches = length_batches([len(w) for w in every], BATCH_TOKENS)

        def forward(part: list[Any]) -> Float:
            batch: dict[str, Any] = dict(tokens.batch(part, moment))
            batch["offset"] = np.zeros((*batch["positions"].shape, self._size), np.float32)
            for row, window in enumerate(part):
                batch["offset"][row, : len(window.points)] = offset[window.points]
            return self._session.run_inputs({name: batch[name] for name in self._session.inputs})

        for part, log_probs in self._session.each(([every[i] for i in batch] for batch in batches), forward):
            for row, window in enumerate(part):
                out[window.points] = log_probs[row, : len(window.points)]
        # the position before any event is trained as context alone: nothing that it says of advertisers was measured
        nothing = np.flatnonzero(histories.seek(user, moment) == histories.offsets[user])
        out[nothing] = log_softmax(offset[nothing])
        return out

    def _popular(self, histories: Histories, cutoffs: Int) -> Float:
        """Drift [K, S, N] at the snapshots, the same for all users."""
        key = cutoffs.tobytes()
        if self._drift is None or self._drift[0] is not crowd_of(histories) or self._drift[1] != key:
            self._drift = (crowd_of(histories), key, self._offset.terms.everyone(histories, cutoffs, self._size))
        return self._drift[2]
