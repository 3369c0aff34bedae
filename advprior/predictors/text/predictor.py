"""The text prior: advertisers known by what is written of them, so that one without a single event has a score.

A frozen LLM (or, as a control, words without a network) encodes each advertiser's name and catalog text once; a
conditional logit over the principal components (see `advprior.predictors.text.logit`) reads the user's history through
the same texts. Known advertisers keep their popularity and their habit; the LLM's cost falls on the catalog, not on the
users, and scoring needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.history.targets import quality, targets_of
from advprior.predictors.base import CATALOG_TEXTS, EVERYONE, MASKED_TEXTS, OWN, FitData, Predictor, Scorer
from advprior.predictors.deadline import Deadline
from advprior.predictors.encoding.encode import encode, pretrained, saw_labels
from advprior.predictors.labels import require_choosing_labels
from advprior.predictors.logit import log_softmax
from advprior.predictors.quality import MODEL, POPULAR, SEEN, popularity_quality
from advprior.predictors.text.alike import (
    Alike,
    AlikeTexts,
    alike_terms,
    lift_terms,
    load_alike,
    save_alike,
    spread_of_new,
    texts_of,
    unit_vectors,
)
from advprior.predictors.text.logit import (
    OWN_BACK_OFF,
    OWN_HALF_LIFE,
    Space,
    TextPoints,
    Weights,
    fit,
    known_terms,
    popularity_at,
    taste,
)
from advprior.predictors.text.places import with_places
from advprior.predictors.text.settings import SPREAD, TextSettings
from advprior.runtime.parity import require_parity
from advprior.store.arrays import Float, Int
from advprior.store.contract import CATALOG_FILE, CATALOG_TEXT, LEXICAL
from advprior.store.errors import AdvpriorError
from advprior.store.runs import write_json

KIND = CATALOG_TEXT
CELLS = 40_000_000  # of one points × advertisers matrix: fewer points where the catalog is large
ENCODINGS, SPACE, PARAMETERS = "encodings.npy", "space.npz", "parameters.json"
WORDS = "words.json"  # texts whose words a lexical encoder counts: new advertisers are laid into the same space


def encode_catalog(
    names: Sequence[str],
    texts: Sequence[str],
    settings: TextSettings,
    *,
    cutoff: int | None = None,
    fitted_on: Sequence[str] | None = None,
) -> tuple[Float, dict[str, Any]]:
    """What the encoder makes of each name, and beside it of each text, NaN where there is none [N, 2·H]."""
    has_text = np.asarray([bool(text) for text in texts])
    encodings, origin = encode(
        [*names, *(t for t in texts if t)],
        settings,
        seed=settings.seed,
        cutoff=cutoff,
        deadline=Deadline(settings.max_minutes),
        fitted_on=fitted_on,
    )
    of_names = encodings[: len(names)]
    beside = np.full_like(of_names, np.nan)
    beside[has_text] = encodings[len(names) :]
    return np.concatenate([of_names, beside], axis=1), origin


def text_vectors(run: Path) -> Float | None:
    """Unit vectors [N, 2·E] of a run's encodings of names and texts, standardised; None of a run that has none."""
    if not (run / ENCODINGS).exists() or not (run / SPACE).exists():
        return None
    return unit_vectors(space_of(run), np.load(run / ENCODINGS))


def space_of(run: Path) -> Space:
    """What a run's encodings are standardised and reduced by."""
    with np.load(run / SPACE) as saved:
        return Space(saved["mean"], saved["spread"], saved["directions"])


class TextPredictor(Predictor):
    """A conditional logit over what an encoder makes of the catalog."""

    kind = KIND

    @property
    def uses_llm(self) -> bool:
        """Whether pre-trained weights are behind it: not so for the lexical and the random-weight control."""
        return pretrained(self.run, TextSettings(**self.parameters["settings"]))

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.parameters: dict[str, Any] = json.loads((self.run / PARAMETERS).read_text())
        self.space = space_of(self.run)
        encodings = np.load(self.run / ENCODINGS)
        self.features: Float = self.space.features(encodings)
        raw = self.parameters["weights"]
        self.weights = Weights(**{name: np.asarray(value, np.float64) for name, value in raw.items()})
        self.alike: Alike | None = None
        if self.parameters["settings"].get("alike"):
            self.alike = load_alike(self.run, self.space, encodings)

    @property
    def boost(self) -> float:
        """Nats that an advertiser without events is given."""
        boost = self.parameters["settings"]["new_boost"]
        return float(self.parameters["new_spread"] if boost == SPREAD else boost)

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> TextSettings:
        return TextSettings(**raw)

    @property
    def reads(self) -> tuple[str, ...]:
        return (EVERYONE, OWN, MASKED_TEXTS if self.parameters["settings"].get("masked") else CATALOG_TEXTS)

    @classmethod
    def fit(cls, data: FitData, settings: TextSettings, out: Path) -> dict[str, Any]:
        shown = data.catalog.to_read(masked=settings.masked)
        texts = shown.texts or ("",) * len(shown)
        encodings, origin = encode_catalog(shown.names, texts, settings, cutoff=data.cutoff)
        space = Space.of(encodings, settings.components)
        features = space.features(encodings)
        similar = texts_of(space, encodings) if settings.alike else None
        np.save(out / ENCODINGS, encodings)
        np.savez(out / SPACE, mean=space.mean, spread=space.spread, directions=space.directions)
        del encodings  # of a wide catalog a gigabyte
        weights, facts = _weigh(data, features, settings, similar)
        valid = _validate(data, features, settings, similar)
        if valid and saw_labels(settings, data.cutoff - int(settings.valid_days * counts.DAY)):
            valid[SEEN] = True
        write_json(
            out / PARAMETERS,
            {
                "settings": settings.model_dump(mode="json"),
                "weights": {name: value.tolist() for name, value in vars(weights).items()},
                "new_spread": facts.pop("new_spread"),
            },
        )
        if similar is not None:
            save_alike(out, similar, data.histories)
        if settings.base == LEXICAL:
            write_json(out / WORDS, [*shown.names, *(t for t in texts if t)])
        data.catalog.save(out / CATALOG_FILE)
        return {
            **settings.origin_facts(origin),
            **facts,
            "valid": valid,
        }

    def export(self, out: Path) -> dict[str, Any]:
        from advprior.runtime import graphs

        right = (self.weights.personal @ self.features.T).astype(np.float32)
        graphs.save_text(out / "model.onnx", self.features, right, OWN_BACK_OFF)
        rng = np.random.default_rng(0)
        size = len(self.catalog)
        own = (rng.gamma(1.0, 2.0, (6, size)) * (rng.random((6, size)) < 0.1)).astype(np.float32)
        own[0] = 0
        offset = rng.normal(0.0, 2.0, (6, size)).astype(np.float32)
        ours = log_softmax(taste(own, self.features) @ right + offset)
        theirs = graphs.run(out / "model.onnx", {"own": own, "offset": offset})
        return {**require_parity(theirs, ours, str(out)), "cases": len(own)}

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        return _TextScorer(self, onnx, device, threads)


def _weigh(
    data: FitData, features: Float, settings: TextSettings, texts: AlikeTexts | None
) -> tuple[Weights, dict[str, Any]]:
    """The weights, and what is to be known of the points that they were fitted on."""
    points = training_points(data, features, settings, texts)
    weights = fit(points, features, settings.penalty, settings.personal_penalty)
    return weights, {
        "points": len(points.taste),
        "advertisers_with_events": int(points.candidate.sum()),
        "new_spread": _new_spread(points, weights, features),
    }


def training_points(
    data: FitData, features: Float, settings: TextSettings, texts: AlikeTexts | None = None
) -> TextPoints:
    """Occasions with a history, recent ones more likely, each with advertisers withheld at random.

    Raises
    ------
    AdvpriorError
        ``PRI006`` when no user has two occasions.
    """
    histories, size = data.histories, len(data.catalog)
    rng = np.random.default_rng(settings.seed)
    who, time = histories.user_of_row, histories.time
    begins = np.r_[True, (who[1:] != who[:-1]) | (time[1:] != time[:-1])][: len(who)]
    later = begins & np.r_[False, who[1:] == who[:-1]][: len(who)]
    user, moment = who[later], time[later]
    row, ends = np.flatnonzero(later), np.r_[np.flatnonzero(begins)[1:], len(who)][later[begins]]
    if not len(user):
        raise AdvpriorError(
            "PRI006",
            "the histories hold too little to fit on",
            where="events before finetune_end",
            actual="no user with two occasions",
            expected="at least one",
            fix="move finetune_end later, or add events",
        )
    age = (data.cutoff - moment) / counts.DAY
    chance = 0.5 ** ((age - age.min()) / settings.recency_half_life_days)
    cells = CELLS // (1 if texts is None else 2)  # its terms are as many again
    limit = min(settings.points, max(cells // size, 1), int((chance > 0).sum()))
    chosen = np.sort(rng.choice(len(user), limit, replace=False, p=chance / chance.sum()))
    user, moment, row, ends = user[chosen], moment[chosen], row[chosen], ends[chosen]

    first = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(first, histories.advertiser, time)
    seen = first < data.cutoff
    new = (first >= moment[:, None]) | ~seen
    own = counts.own_points(histories, user, moment, OWN_HALF_LIFE, size)
    withheld = _withheld(rng, len(user), seen, settings.withheld_share)
    if settings.known:
        new |= withheld
        own = own * ~new  # the events of who is withheld are withheld too
    else:
        new[:] = True
    popular = popularity_at(histories, moment, settings.popularity_half_lives_days, size)
    truth = np.zeros((len(user), size), np.float32)
    lengths = ends - row
    occasion = np.repeat(row - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    truth[np.repeat(np.arange(len(user)), lengths), histories.advertiser[occasion]] = 1.0
    truth /= truth.sum(1, keepdims=True) * len(user)
    alike = None
    if texts is not None:
        lift = lift_terms(texts, histories, moment, own, withheld & settings.known)
        alike = alike_terms(texts, own, popular[-1], new, lift)
    return TextPoints(known_terms(popular, own * ~new, new), taste(own, features), new, truth, seen, alike)


def _validate(data: FitData, features: Float, settings: TextSettings, texts: AlikeTexts | None) -> dict[str, Any]:
    """Quality of a fit that saw no label of the last days, at snapshots within them; nothing where there are none."""
    require_choosing_labels(settings.horizon_days, settings.valid_days, "valid_days")
    size, horizon = len(data.catalog), int(settings.horizon_days * counts.DAY)
    border, last = data.cutoff - int(settings.valid_days * counts.DAY), data.cutoff - horizon
    user, moment = counts.weekly_points(data.histories, border, last, data.snapshot_every)
    truth = targets_of(data.histories, user, moment - 1, horizon, size)
    some = np.flatnonzero(truth.counts)
    most = min(settings.points, max(CELLS // (4 * size), 1))
    if len(some) > most:
        some = np.sort(np.random.default_rng(settings.seed).choice(some, most, replace=False))
    early = replace(data, histories=data.histories.before(border), cutoff=border)
    try:
        half = settings.model_copy(update={"points": max(settings.points // 2, 1)})
        points = training_points(early, features, half, texts)
    except AdvpriorError:  # nobody came twice before the border
        return {}
    if not len(some):
        return {}
    user, moment, truth = user[some], moment[some], truth.take(some)
    weights = fit(points, features, settings.penalty, settings.personal_penalty)
    boost = settings.new_boost
    if not isinstance(boost, float):
        boost = _new_spread(points, weights, features)
    del points  # of a wide catalog a gigabyte
    popular = np.stack(
        [
            counts.PopularityCache(h, size)(data.histories, np.unique(moment))[
                np.unique(moment, return_inverse=True)[1]
            ]
            for h in settings.popularity_half_lives_days
        ]
    )
    own = counts.own_points(data.histories, user, moment, OWN_HALF_LIFE, size)
    logits = taste(own, features) @ (weights.personal @ features.T).astype(np.float32)
    alike = None if texts is None else Alike(texts, texts.lift(texts.together(early.histories)).whole())
    fitted = _Fitted(weights, features, settings.known, alike, boost, settings.new_places)
    log_probs = log_softmax(logits + fitted.offset(own, popular))
    for now in np.unique(moment):
        at = np.flatnonzero(moment == now)
        log_probs[at] = fitted.placed(log_probs[at], popular[:, at[0]])
    return {
        MODEL: quality(log_probs, truth),
        POPULAR: popularity_quality(data.histories, moment, truth),
    }


@dataclass(frozen=True)
class _Fitted:
    """What a user's offset is made of."""

    weights: Weights
    features: Float
    known: bool
    alike: Alike | None
    boost: float  # nats of an advertiser without events
    places: int = 0  # of the first ones that are kept for these

    def placed(self, log_probs: Float, popular: Float) -> Float:
        """Log-probs [P, N] with places for who has no event in ``popular`` [H, N], as of one snapshot."""
        return with_places(log_probs, popular.max(0) <= 0, self.places) if self.known else log_probs

    def offset(self, own: Float, popular: Float) -> Float:
        """All but the personal part of the logits [P, N], from decayed events of the user and of all [H, P, N]."""
        of_each = popular[:, : 1 if popular.strides[1] == 0 else None]  # one row where it is the same of all users
        unseen = of_each.max(0) <= 0  # nobody ever turned to them, as of this snapshot
        new = np.broadcast_to(unseen if self.known else np.True_, own.shape)
        offset = self.weights.offset(known_terms(popular, own * ~new, new), self.features, new)
        if self.alike is not None:
            lift = self.alike.lift.term(own)
            terms = alike_terms(self.alike.texts, own, popular[-1], new, lift)
            offset += np.tensordot(self.weights.alike.astype(np.float32), terms, 1)
        if self.known:
            offset = offset + np.float32(self.boost) * unseen
        return offset.astype(np.float32)


def _new_spread(points: TextPoints, weights: Weights, features: Float) -> float:
    """See `spread_of_new`: over advertisers with events, at the points where they are known."""
    none = np.zeros_like(points.new)
    by_data = weights.offset(points.terms, features, none)
    by_text = weights.offset(np.zeros_like(points.terms), features, ~none)
    if points.alike is not None:  # terms of known and of new advertisers differ in the smoothed popularity alone
        smoothed = points.alike[:2].sum(0)
        by_data, by_text = by_data + weights.alike[1] * smoothed, by_text + weights.alike[0] * smoothed
    counted = np.where(points.new, np.nan, by_data - by_text)[:, points.candidate & ~points.new.all(0)]
    return spread_of_new(np.nanmean(counted, 0))


def _withheld(rng: np.random.Generator, points: int, seen: Any, share: float) -> Any:
    """A mask [points, N]: each seen advertiser is withheld in a ``share`` of the points, whole folds at a time."""
    known_ones = np.flatnonzero(seen)
    folds = max(round(1 / share), 2)
    masks = np.zeros((2 * folds, len(seen)), np.bool_)
    for start in (0, folds):
        order = rng.permutation(known_ones)
        for fold in range(folds):
            masks[start + fold, order[fold::folds]] = True
    return masks[rng.integers(len(masks), size=points)]


class _TextScorer(Scorer):
    def __init__(self, predictor: TextPredictor, onnx: Path, device: str, threads: int | None) -> None:
        from advprior.runtime.session import open_session

        self._session = open_session(onnx / "model.onnx", device=device, threads=threads, small=True)
        self.provider = self._session.provider
        settings = TextSettings(**predictor.parameters["settings"])
        self._fitted = _Fitted(
            predictor.weights,
            predictor.features,
            settings.known,
            predictor.alike,
            predictor.boost,
            settings.new_places,
        )
        self._size = len(predictor.catalog)
        self.half_lives = tuple(settings.popularity_half_lives_days)
        self._popularity = [counts.PopularityCache(h, self._size) for h in self.half_lives]

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        popular = np.stack([cache(histories, cutoffs) for cache in self._popularity])
        out = np.empty((len(users), len(cutoffs), self._size), np.float32)
        for column, cutoff in enumerate(cutoffs):
            own = counts.own_points(histories, users, np.full(len(users), cutoff), OWN_HALF_LIFE, self._size)
            everyone = np.broadcast_to(popular[:, column, None], (len(popular), *own.shape))
            offset = self._fitted.offset(own, everyone)
            log_probs = self._session.run_inputs({"own": own, "offset": offset})
            out[:, column] = self._fitted.placed(log_probs, popular[:, column])
        return out
