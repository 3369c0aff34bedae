"""Both rankers of a service, read from their folders and made ready to rank: with priors, and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature
from advprior.store.runs import manifest_digest, read_manifest
from ranking.models.ranker import Ranker
from ranking.service.plan import Plan
from ranking.service.predictor import Predictor
from ranking.service.reader import OnlineReader

TRAIN_FIX = "advprior rank train --frame FRAME --service SERVICE --out RANKER"


@dataclass(frozen=True)
class Loaded:
    """A ranker, ready to rank."""

    plan: Plan
    predictor: Predictor
    digest: str

    @property
    def service(self) -> str:
        """Its feature service."""
        return self.plan.ranker.service


@dataclass(frozen=True)
class Rankers:
    """Both rankers; swapped together."""

    priors: Loaded
    plain: Loaded

    def both(self) -> tuple[Loaded, Loaded]:
        """The one with priors first."""
        return self.priors, self.plain

    @property
    def digests(self) -> tuple[str, str]:
        """Of their manifests."""
        return self.priors.digest, self.plain.digest

    @property
    def context_names(self) -> tuple[set[str], set[str]]:
        """Context features that each takes of a request."""
        first, second = ({name for _, name in loaded.plan.context} for loaded in self.both())
        return first, second


@dataclass(frozen=True)
class RankerFolder:
    """A ranker as it lies in its folder: with what read it, before any store is asked."""

    folder: Path
    ranker: Ranker
    digest: str

    @classmethod
    def read(cls, folder: Path) -> RankerFolder:
        """Read a finished ``rank train`` run.

        A promotion may point the folder at another ranker meanwhile: all is read where it points now.

        Raises
        ------
        AdvpriorError
            ``RUN00x`` when it is none, ``RNK02x`` when it cannot be read.
        """
        folder = Path(folder).resolve()
        read_manifest(folder, step="rank train", fix=TRAIN_FIX)
        return cls(folder, Ranker.load(folder), manifest_digest(folder))


def features_by_service(rankers: Sequence[RankerFolder]) -> dict[str, set[Feature]]:
    """What an online reader has to read."""
    features: dict[str, set[Feature]] = {}
    for one in rankers:
        features.setdefault(one.ranker.service, set()).update(one.ranker.features)
    return features


def make_rankers(rankers: Sequence[RankerFolder], reader: OnlineReader, cache: Path | None) -> Rankers:
    """Both rankers, held to what the store serves.

    Parameters
    ----------
    rankers : the one with priors, then the one without
    cache : Path, optional
        Of compiled trees.

    Raises
    ------
    AdvpriorError
        ``SRV003`` when a service lacks what its ranker was trained on, ``SRV004`` when the rankers are the wrong way
        round.
    """
    priors, plain = (
        Loaded(Plan(one.ranker, reader), Predictor(one.ranker, one.folder, cache), one.digest) for one in rankers
    )
    for loaded, with_priors in ((priors, True), (plain, False)):
        if bool(loaded.plan.predictors) != with_priors:
            raise AdvpriorError(
                "SRV004",
                "the service needs a ranker with priors and one without",
                where=loaded.service,
                actual="a ranker without priors" if with_priors else "a ranker with priors",
                expected="--ranker with priors, --fallback without",
                fix=TRAIN_FIX,
            )
    return Rankers(priors, plain)
