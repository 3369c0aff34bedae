"""The neighbour prior: what goes with what this user turns to, on top of habit and popularity.

The conventional control (item-based collaborative filtering, Sarwar et al. 2001): an LLM prior that does not beat it
earns nothing. Cosine similarity between advertisers over the users who turned to both; the log of the summed
similarity to a user's events is one term of a conditional logit beside habit and drift, all fitted on labels before
the cut-off. A user's events are folded in as of each snapshot, so new ones count at once.

Beyond `sparse_links.WIDE` advertisers only the strongest links of each one are kept, as a sparse matrix, and what they
say of a user is an input of the graph: no array of advertisers × advertisers is ever made.

Where advertisers have departments (what is coarser than a category), the user's events in the same department are a
term too: what a text says of it is then no merit of the model that reads the text.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from advprior.history import counts
from advprior.history.histories import Codes, Histories
from advprior.history.targets import quality_of_blocks, targets_of
from advprior.predictors.base import EVERYONE, OWN, FitData, Predictor, Scorer
from advprior.predictors.logit import fit_logit, log_softmax
from advprior.predictors.offset import SMOOTHING, OffsetTerms, weighed
from advprior.predictors.quality import MODEL, POPULAR, SEEN, popularity_quality
from advprior.predictors.sparse_links import WIDE, dense_linked, linked, neighbour_links
from advprior.predictors.terms import Terms
from advprior.runtime.parity import require_parity
from advprior.store.arrays import Double, Float, Int
from advprior.store.contract import CATALOG_FILE, NEIGHBOURS
from advprior.store.runs import write_json

DEPARTMENTS = "the departments of the advertisers"
CELLS = 40_000_000  # of points × advertisers that weigh the terms: fewer points where the catalog is large
LEAST, LEAST_BY_DEPARTMENT = 5000, 500  # points; an event concerns all advertisers of its department
LINKS = 200  # of each advertiser of a wide catalog
FLOOR = 0.1  # of the summed similarity, so that its log stays finite


class LinkSettings(BaseModel):
    """Settings that all priors have in which one advertiser speaks for another.

    ``most``: links of each advertiser that are kept where the catalog is wider than 10,000.
    """

    model_config = ConfigDict(extra="forbid")
    half_lives_days: tuple[float, ...] = (60.0, 14.0)
    popularity_half_life_days: float = 30.0
    horizon_days: float = 7.0
    valid_days: float = 28.0
    most: int = Field(default=LINKS, ge=1)

    @property
    def linked(self) -> bool:
        """Whether what goes with what is read at all, and the department."""
        return True


class NeighbourSettings(LinkSettings):
    """Settings of the neighbour prior.

    ``similar: false`` leaves out what goes with what, the department too: with one short half-life the rest is the
    *last advertiser*.
    """

    similar: bool = True

    @property
    def linked(self) -> bool:
        return self.similar


@dataclass(frozen=True)
class Links:
    """What a predictor makes of events as numbers between two advertisers.

    Attributes
    ----------
    ways : dict of str to callable
        Histories -> float32 [N, N], what an event of the row's advertiser says of the column's, by how it was set; a
        sparse matrix of a wide catalog. Of several the one is taken whose logit explains the validation labels best.
    facts : dict
        Of the run.
    parameters : dict
        Beside those of the logit.
    """

    ways: Mapping[str, Callable[[Histories], Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


def similarity(histories: Histories, size: int, wanted: bool = True) -> Float:
    """Cosine between advertisers over who turned to them [N, N], zero on the diagonal; all zero where not wanted.

    Some users at a time: whoever turned to whom is never one array [U, N].

    >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 2, 1]), np.array([0, 1, 0]))
    >>> similarity(h, 2).astype(float).round(3).tolist()
    [[0.0, 0.707], [0.707, 0.0]]
    """
    if not wanted:
        return np.zeros((size, size), np.float32)
    result: Float = np.zeros((size, size), np.float32)  # users in common: a whole number, so that parts add up exactly
    user, step = histories.user_of_row, max(counts.CELLS // max(size, 1), 1)
    for first in range(0, len(histories), step):
        some = min(step, len(histories) - first)
        rows = slice(histories.offsets[first], histories.offsets[first + some])
        turned = np.zeros((some, size), np.float32)
        turned[user[rows] - first, histories.advertiser[rows]] = 1.0
        result += turned.T @ turned
    norm = np.sqrt(np.maximum(np.diag(result), 1.0))
    result /= norm
    result /= norm[:, None]
    np.fill_diagonal(result, 0.0)
    return result


def neighbour_term(own: Float, similar: Any) -> Float:
    """``log(max(log1p(own)·S, 0) + 0.1)`` [..., N] of own decayed events; cosines are never below zero."""
    near = np.maximum(np.log1p(own) @ similar, 0.0) if isinstance(similar, np.ndarray) else dense_linked(own, similar)
    term: Float = np.log(near + FLOOR)
    return term


def memberships(departments: Codes) -> Float:
    """Which of D departments each advertiser belongs to: zeros and ones [N, D].

    >>> memberships(np.array([1, -1, 0], np.int32)).tolist()
    [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    """
    belongs: Float = (departments[:, None] == np.arange(departments.max(initial=-1) + 1)).astype(np.float32)
    return belongs


def department_term(own: Float, belongs: Float) -> Float:
    """``log(log1p(own)·M·Mᵀ + 0.1)`` [..., N] of own decayed events and `memberships` M: events in the same department.

    >>> own = np.array([[0.0, np.e - 1, 0.0]])
    >>> department_term(own, memberships(np.array([0, 0, 1], np.int32))).round(1).tolist()
    [[0.1, 0.1, -2.3]]
    """
    term: Float = np.log(np.log1p(own) @ belongs @ belongs.T + FLOOR)
    return term


class LinkPredictor(Predictor):
    """A conditional logit on log-popularity, habit, what goes with what and, where there are some, departments."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.parameters = json.loads((self.run / "parameters.json").read_text())
        self.similarity = _load(self.run)
        by_department = len(self.parameters["weights"]) > 2 + len(self.parameters["half_lives_days"])
        self.belongs: Float | None = memberships(self.catalog.department_codes()) if by_department else None

    @classmethod
    @abstractmethod
    def links(cls, data: FitData, settings: Any) -> Links:
        """How events, and whatever else it reads, say what goes with what."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (EVERYONE, OWN) if self.belongs is None else (EVERYONE, OWN, DEPARTMENTS)

    @classmethod
    def fit(cls, data: FitData, settings: Any, out: Path) -> dict[str, Any]:
        links = cls.links(data, settings)
        way, weights, valid = _chosen(data, settings, links)
        data.catalog.save(out / CATALOG_FILE)
        _save(out, links.ways[way](data.histories))
        parameters = {
            "weights": [float(w) for w in weights],
            "half_lives_days": list(settings.half_lives_days),
            "popularity_half_life_days": settings.popularity_half_life_days,
        }
        write_json(out / "parameters.json", {**parameters, **links.parameters})
        return {**parameters, **links.facts, "valid": valid} | ({"links": way} if len(links.ways) > 1 else {})

    def log_probs(self, popularity: Float, own: list[Float]) -> Float:
        """Log-probs [P, N] from decayed counts of everyone and of the user, one array a half-life."""
        terms = [np.log(popularity + SMOOTHING), *[np.log1p(x) for x in own], neighbour_term(own[0], self.similarity)]
        terms += [] if self.belongs is None else [department_term(own[0], self.belongs)]
        return log_softmax(np.tensordot(np.asarray(self.parameters["weights"]), np.stack(terms), 1))

    def export(self, out: Path) -> dict[str, Any]:
        from advprior.runtime import graphs

        size, habits = len(self.catalog), len(self.parameters["half_lives_days"])
        similar = [self.similarity] if isinstance(self.similarity, np.ndarray) else None
        matrices = [similar] + ([] if self.belongs is None else [[self.belongs, self.belongs.T]])
        weights = self.parameters["weights"]
        graphs.save_neighbours(out / "model.onnx", size, matrices, weights, graphs.Constants(SMOOTHING, FLOOR))
        rng = np.random.default_rng(0)
        popularity = rng.gamma(0.3, 20.0, (6, size)).astype(np.float32)
        sparse = [rng.gamma(0.3, 5.0, (6, size)) * (rng.random((6, size)) < 0.1) for _ in range(habits)]
        own = [x.astype(np.float32) for x in sparse]
        own[0][0] = 0.0
        inputs = {"popularity": popularity, **{f"own{k}": x for k, x in enumerate(own)}, **near_input(self, own[0])}
        theirs = graphs.run(out / "model.onnx", inputs)
        parity = require_parity(theirs, self.log_probs(popularity, own), str(out))
        return {**parity, "cases": len(popularity)}

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        return _NeighbourScorer(self, onnx, device, threads)


class NeighbourPredictor(LinkPredictor):
    """A conditional logit on log-popularity, habit, neighbours and, where there are departments, the same one."""

    kind = NEIGHBOURS

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> NeighbourSettings:
        return NeighbourSettings(**raw)

    @classmethod
    def links(cls, data: FitData, settings: NeighbourSettings) -> Links:
        size = len(data.catalog)
        if size > WIDE and settings.similar:
            return Links({"cosine": partial(neighbour_links, size=size, most=settings.most)})
        return Links({"cosine": partial(similarity, size=size, wanted=settings.similar)})


def _chosen(data: FitData, settings: LinkSettings, links: Links) -> tuple[str, Double, dict[str, Any]]:
    """Which way of links explains the last labels best, the weights by it, and its quality there."""
    size, horizon = len(data.catalog), int(settings.horizon_days * counts.DAY)
    last = data.cutoff - horizon
    first = last - int(settings.valid_days * counts.DAY)
    user, cutoff = counts.weekly_points(data.histories, first, last, data.snapshot_every)
    truth = targets_of(data.histories, user, cutoff - 1, horizon, size)
    some = truth.counts > 0
    points = np.flatnonzero(some)
    departments = data.catalog.department_codes() if settings.linked else np.zeros(0, np.int32)
    if len(points) > (limit := max(CELLS // size, LEAST_BY_DEPARTMENT if len(departments) else LEAST)):
        points = np.sort(np.random.default_rng(0).choice(points, limit, replace=False))
    user, cutoff, truth = user[points], cutoff[points], truth.take(points)
    start = np.asarray([1.0, *[0.0] * (len(settings.half_lives_days) + 1 + bool(len(departments)))])
    if not len(user):
        return next(iter(links.ways)), start, {}
    habit = OffsetTerms((settings.popularity_half_life_days,), settings.half_lives_days, monthly=False)
    # links from before the labels that their weight is fitted on
    before = data.histories.before(first)
    belongs = memberships(departments) if len(departments) else None
    wide = _wide_terms if size > WIDE else _dense_terms
    design = wide(data.histories, user, cutoff, habit, belongs, size)
    fitted: dict[str, tuple[Double, dict[str, float]]] = {}
    for name, way in links.ways.items():
        every = design(way(before))
        weights = fit_logit(every, truth, centre=start)
        blocks = every.blocks(weights) if isinstance(every, Terms) else [weighed(every, weights)]
        fitted[name] = weights, quality_of_blocks(map(log_softmax, blocks), truth)
    best = min(fitted, key=lambda name: fitted[name][1]["nll"])
    popular = popularity_quality(data.histories, cutoff, truth)
    return best, fitted[best][0], {MODEL: fitted[best][1], POPULAR: popular, SEEN: True}


def _dense_terms(
    histories: Histories, user: Int, cutoff: Int, habit: OffsetTerms, belongs: Float | None, size: int
) -> Callable[[Any], Float]:
    """Links -> all terms [K, P, N] of P points."""
    terms = habit(histories, user, cutoff, size)
    own = counts.own_points(histories, user, cutoff, habit.own[0], size)
    beside = [] if belongs is None else [department_term(own, belongs)]
    return lambda similar: np.concatenate([terms, np.stack([neighbour_term(own, similar), *beside])])


def _wide_terms(
    histories: Histories, user: Int, cutoff: Int, habit: OffsetTerms, belongs: Float | None, size: int
) -> Callable[[Any], Terms]:
    """As `_dense_terms`, without the array: what is linked to a history are some of all advertisers.

    Each linked term is taken for its difference to what it is without any link, which no softmax sees.
    """
    from scipy.sparse import csr_matrix

    start = habit.sparse(histories, user, cutoff, size)
    cells = counts.own_cells(histories, user, cutoff, habit.own[:1], size)
    own = csr_matrix((cells.counted[0], cells.index, cells.offsets), shape=(len(user), size))
    departments = [] if belongs is None else [linked(own, csr_matrix(belongs), csr_matrix(belongs.T))]

    def terms(similar: Any) -> Terms:
        near = [linked(own, csr_matrix(similar)), *departments]
        keys = [np.repeat(np.arange(len(user)), np.diff(m.indptr)) * size + m.indices for m in near]
        first = start.point * size + start.index
        every = np.unique(np.concatenate([first, *keys]))
        value = np.zeros((len(start) + len(near), len(every)), np.float32)
        value[: len(start), np.searchsorted(every, first)] = start.value
        for k, (at, matrix) in enumerate(zip(keys, near, strict=True), start=len(start)):
            value[k, np.searchsorted(every, at)] = np.log(matrix.data + FLOOR) - np.log(FLOOR)
        stops = np.searchsorted(every, np.arange(len(user) + 1) * size)
        return Terms(start.shared, start.row, stops, every % size, value)

    return terms


def near_input(predictor: LinkPredictor, own: Float) -> dict[str, Float]:
    """What a wide catalog's links say of own decayed events [P, N], as an input of the graph; none of a narrow one."""
    similar = predictor.similarity
    return {} if isinstance(similar, np.ndarray) else {"linked0": dense_linked(own, similar)}


def _save(out: Path, similar: Any) -> None:
    """Links in a run's folder: an array, or a sparse matrix."""
    if isinstance(similar, np.ndarray):
        np.save(out / "similarity.npy", similar)
    else:
        from scipy.sparse import save_npz

        save_npz(out / "similarity.npz", similar)


def _load(run: Path) -> Any:
    """What `_save` wrote."""
    if (run / "similarity.npy").exists():
        return np.load(run / "similarity.npy")
    from scipy.sparse import load_npz

    return load_npz(run / "similarity.npz").tocsr()


class _NeighbourScorer(Scorer):
    def __init__(self, predictor: LinkPredictor, onnx: Path, device: str, threads: int | None) -> None:
        from advprior.runtime.session import open_session

        self._session = open_session(onnx / "model.onnx", device=device, threads=threads, small=True)
        self.provider = self._session.provider
        self._parameters = predictor.parameters
        self._size = len(predictor.catalog)
        self._predictor = predictor
        self.half_lives = (float(self._parameters["popularity_half_life_days"]),)
        self._popularity = counts.PopularityCache(self.half_lives[0], self._size)

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        user, cutoff = np.repeat(users, len(cutoffs)), np.tile(cutoffs, len(users))
        inputs = {"popularity": np.tile(self._popularity(histories, cutoffs), (len(users), 1))}
        for k, half_life in enumerate(self._parameters["half_lives_days"]):
            inputs[f"own{k}"] = counts.own_points(histories, user, cutoff, float(half_life), self._size)
        inputs |= near_input(self._predictor, inputs["own0"])
        return self._session.run_inputs(inputs).reshape(len(users), len(cutoffs), self._size)
