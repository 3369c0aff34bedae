"""One interface for whoever computes log P(advertiser | history): fit, export to ONNX, score.

A prior is worth publishing when it pays, not because an LLM made it: the LLM and its controls take the
same path, from the same histories to the same files. Fitting may need torch; scoring never does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from advprior.history.catalog import Catalog
from advprior.history.fingerprints import hash64
from advprior.history.histories import Histories
from advprior.history.interests import Interests
from advprior.predictors.logit import add_offset
from advprior.runtime.top_graph import TopRows
from advprior.store.arrays import Float, Int
from advprior.store.contract import CATALOG_FILE

#: Folder in a fitted run with the predictor as it was before it was fitted on the labels that validated it. Who writes
#: it says in the fact of this name what differs from the run's own facts: ``model_cutoff``.
BEFORE = "before"
#: What nearly every predictor reads, as `Predictor.reads` says it.
EVERYONE, OWN = "how often everyone turned to each advertiser lately", "which advertisers the user turned to, and when"
CATALOG_TEXTS = "the names and texts of the advertisers"
MASKED_TEXTS = "the texts of the advertisers, without their names"


@dataclass(frozen=True)
class FitData:
    """What a predictor may learn from.

    Attributes
    ----------
    histories : Histories
        Events strictly before ``cutoff`` only.
    catalog : Catalog
    start, cutoff : int
        Microseconds; no label at or after ``cutoff``.
    snapshot_every : int
        Microseconds between snapshots.
    interests : Interests, optional
        What the same users were interested in before ``cutoff``; None where the tables have no categories.
    """

    histories: Histories
    catalog: Catalog
    start: int
    cutoff: int
    snapshot_every: int
    interests: Interests | None = None


class Scorer(ABC):
    """A predictor ready to score: an open ONNX Runtime session and what it needs around it.

    Attributes
    ----------
    provider : str
        Of ONNX Runtime.
    half_lives : tuple of float
        Days: all that `score` (of a `NetworkScorer`: `network`) asks of users other than those it is given is
        `counts.popularity` at these, so that they can be scored elsewhere.
    same_for_all : bool
        Whether all users have the same prior at a cut-off: it is computed once then, however many they are.
    """

    provider: str
    half_lives: tuple[float, ...] = ()
    same_for_all: bool = False
    stopped: bool = False

    @abstractmethod
    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        """Priors [len(users), len(cutoffs), N] of ``users`` from events strictly before each cut-off.

        ``histories`` holds every user: aggregates over all of them are taken as of each cut-off too.
        """

    def stop(self, stopped: bool = True) -> None:
        """Begin no further batch (nobody waits for what is under way), or go on."""
        self.stopped = stopped

    def cut_prompts(self, histories: Histories) -> dict[str, Any]:
        """Of whom it reads a part only, as a fact of a run; empty where it reads all, or writes no prompts."""
        return {}


@dataclass(frozen=True)
class NetworkPart:
    """What a network says of users before habit and drift are added: it changes with a user's input only.

    Attributes
    ----------
    log_probs : float32 [D, N]
        Network's own log-probabilities of D distinct prompts and positions; where the scorer `answers_states`, the
        states [D, W] that its head goes on from.
    index : int64 [U, S]
        Which of them each user and cut-off takes.
    interests : float32 [D, C], optional
        Log-probabilities of product categories from the same forwards, where the network answers for them too.
    prompts, forwarded : int
        Prompts that were asked for, and those that were distinct.
    """

    log_probs: Float
    index: Int
    interests: Float | None = None
    prompts: int = 0
    forwarded: int = 0


class NetworkScorer(Scorer):
    """A scorer whose logits are a network's, plus an offset that changes with time for everyone.

    The two are separable: ``log_softmax(network + offset) = log_softmax(log_softmax(network) + offset)``. So a
    refresh forwards only users whose input changed, and a prompt that many users share is forwarded once.

    Attributes
    ----------
    interests : Catalog, optional
        C product categories that every forward answers for beside the advertisers.
    """

    interests: Catalog | None = None
    #: Whether forwards run on a GPU.
    on_gpu: bool = False
    #: Whether `network` stops before the head, whose end `likeliest` is: for top-K scores of large catalogs.
    answers_states: bool = False

    def __init__(self) -> None:
        self.prompts = 0  # that were asked for
        self.forwarded = 0  # that were distinct

    def network(self, histories: Histories, users: Int, cutoffs: Int) -> NetworkPart:
        """The expensive part; identical prompts within the call are forwarded once."""
        part = self.forward(self.prepare(histories, users, cutoffs))
        self.prompts += part.prompts
        self.forwarded += part.forwarded
        return part

    @abstractmethod
    def prepare(self, histories: Histories, users: Int, cutoffs: Int) -> Any:
        """What `forward` reads: another thread may make it while an earlier forward is under way."""

    @abstractmethod
    def forward(self, prepared: Any) -> NetworkPart:
        """`network` of what was prepared."""

    def answer_states(self) -> int | None:
        """Answer with states from now on: W, numbers of one; None where the export has no head of its own."""
        return None

    def likeliest(self, states: Float, histories: Histories, users: Int, cutoffs: Int, k: int) -> TopRows:
        """The K likeliest advertisers of each user and cut-off, from the states [len(users), len(cutoffs), W]."""
        raise NotImplementedError

    def tune(self, histories: Histories, users: Int, cutoffs: Int) -> dict[str, Any]:
        """Find what one batch should hold on this device; facts for the manifest."""
        return {}

    @abstractmethod
    def offset(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        """The cheap part [len(users), len(cutoffs), N], as of each cut-off."""

    def alike(self, histories: Histories, cutoff: int) -> npt.NDArray[np.uint64]:
        """A number for each user: where it differs so do their prompts up to the cut-off.

        Where it does not, they may differ still.
        """
        return np.asarray([hash64(user.encode()) for user in histories.users], np.uint64)

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        states, self.answers_states = self.answers_states, False
        try:
            part = self.network(histories, users, cutoffs)
        finally:
            self.answers_states = states
        return add_offset(part.log_probs[part.index], self.offset(histories, users, cutoffs))


class Predictor(ABC):
    """A fitted predictor in a run folder.

    Parameters
    ----------
    run : Path
        Folder written by ``advprior finetune``.
    """

    kind: ClassVar[str]
    #: Whether it reads the profile of a user.
    reads_profile: bool = False

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        self.catalog = Catalog.load(self.run / CATALOG_FILE)

    @classmethod
    @abstractmethod
    def settings(cls, raw: dict[str, Any]) -> Any:
        """Checked configuration (pydantic) from what the YAML says."""

    @classmethod
    @abstractmethod
    def fit(cls, data: FitData, settings: Any, out: Path) -> dict[str, Any]:
        """Fit and write into ``out``; returns facts for the manifest."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """What it reads, in words: for its model card, and true of this very run."""

    @abstractmethod
    def export(self, out: Path) -> dict[str, Any]:
        """Write ``model.onnx`` into ``out``; returns facts with ``parity``: the largest difference in log-prob."""

    @abstractmethod
    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        """Open the exported model."""
