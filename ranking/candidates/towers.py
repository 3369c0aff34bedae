"""The two towers, served: numpy and scipy only, one vector per user and one per ad, their product the score.

user = relu(tokens · E + b) · W          tokens: `inputs.Pasts`, a sparse row of length 1
ad   = relu(sum of its four tokens' F + c) · V, and a bias
score = user · ad + bias

Ads change seldom: their vectors are computed once; a user costs one sparse product.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError
from advprior.store.runs import sha256_file, write_json
from ranking.candidates.inputs import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

STEP = "rank towers"
ARRAYS_FILE, SPEC_FILE = "towers.npz", "towers.json"
FIX = "advprior rank towers --tables TABLES --out TOWERS"
_FORMAT = 1
_NAMES = ("user_in", "user_in_bias", "user_out", "ad_in", "ad_in_bias", "ad_out", "ad_bias")


@dataclass
class Towers:
    """Fitted towers.

    Parameters
    ----------
    vocabulary : Vocabulary
        What the tokens mean.
    arrays : dict of float32 arrays
        ``user_in`` [tokens, hidden], ``user_in_bias`` [hidden], ``user_out`` [hidden, size]; ``ad_in`` [ad tokens,
        hidden], ``ad_in_bias`` [hidden], ``ad_out`` [hidden, size], ``ad_bias`` [ad tokens].
    facts : dict
        What else the manifest keeps: label cut-off, losses.
    """

    vocabulary: Vocabulary
    arrays: dict[str, Float]
    facts: dict[str, Any] = field(default_factory=dict)

    def users(self, tokens: Any) -> Float:
        """Vectors [users, size] of sparse rows [users, tokens]."""
        a = self.arrays
        hidden = np.maximum(tokens @ a["user_in"] + a["user_in_bias"], 0.0)
        return np.asarray(hidden @ a["user_out"], dtype=np.float32)

    def ads(self, ads: pd.DataFrame) -> tuple[Float, Float]:
        """Vectors [ads, size] and biases [ads] of a table of ads; what is not known of an ad adds nothing."""
        a, tokens = self.arrays, self.vocabulary.ad_tokens(ads)
        known = (tokens >= 0)[:, :, None]
        hidden = np.maximum((a["ad_in"][tokens] * known).sum(axis=1) + a["ad_in_bias"], 0.0)
        bias = (a["ad_bias"][tokens] * known[:, :, 0]).sum(axis=1)
        return np.asarray(hidden @ a["ad_out"], dtype=np.float32), np.asarray(bias, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write ``towers.npz`` and ``towers.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / ARRAYS_FILE, **self.arrays)  # type: ignore[arg-type]
        spec = {
            "format": _FORMAT,
            "arrays_sha256": sha256_file(folder / ARRAYS_FILE),
            "vocabulary": self.vocabulary.to_json(),
            "facts": self.facts,
        }
        write_json(folder / SPEC_FILE, spec)

    @classmethod
    def load(cls, folder: Path) -> Towers:
        """Read what `save` wrote.

        Raises
        ------
        AdvpriorError
            ``RNK030`` when the folder holds no towers, or damaged ones.
        """
        folder = Path(folder)
        try:
            spec = json.loads((folder / SPEC_FILE).read_text())
            if spec["format"] != _FORMAT:
                raise ValueError(f"format {spec['format']}, made by another version: fit them again")
            if sha256_file(folder / ARRAYS_FILE) != spec["arrays_sha256"]:
                raise ValueError(f"{ARRAYS_FILE} is not what {SPEC_FILE} says: truncated, or from elsewhere")
            with np.load(folder / ARRAYS_FILE) as stored:
                arrays = {name: stored[name] for name in _NAMES}
            return cls(Vocabulary.from_json(spec["vocabulary"]), arrays, spec["facts"])
        except (OSError, ValueError, KeyError) as error:
            raise AdvpriorError(
                "RNK030",
                "no towers can be read here",
                where=str(folder),
                actual=str(error).splitlines()[0],
                expected=f"{ARRAYS_FILE} and {SPEC_FILE}",
                fix=FIX,
            ) from error
