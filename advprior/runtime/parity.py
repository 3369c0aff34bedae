"""Whether two computations of the same log-probabilities agree: torch and ONNX, one prompt and a batch, past and whole.

Single precision rounds by the size of its numbers, and every processor adds up in an order of its own, so the largest
difference allowed grows with what is compared. A wrong graph is off by hundreds of times as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.store.errors import AdvpriorError

#: Of the largest finite log-probability: about 170 roundings of float32 (2 ** -23), on top of one another
RELATIVE = 2e-5
#: Log-probabilities below this size are compared as if they had it: their logits were larger
LEAST_SIZE = 5.0


def allowed_difference(expected: npt.ArrayLike, relative: float = RELATIVE) -> float:
    """Largest absolute difference that still counts as the same, for log-probabilities of the size of ``expected``.

    Parameters
    ----------
    expected : array of log-probabilities (nats), of any shape
    relative : float, optional
        Of the largest finite absolute value, taken as `LEAST_SIZE` at least.

    Examples
    --------
    >>> allowed_difference([-0.5, -20.0, -np.inf]), allowed_difference([-0.5])
    (0.0004, 0.0001)
    """
    values = np.abs(np.asarray(expected, np.float64))
    largest = float(values.max(initial=0.0, where=np.isfinite(values)))
    return relative * max(largest, LEAST_SIZE)


def largest_difference(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Largest absolute difference between two arrays; infinite where one has a NaN or another shape.

    Examples
    --------
    >>> largest_difference([-1.0, -np.inf], [-1.5, -np.inf]), largest_difference([np.nan], [-1.0])
    (0.5, inf)
    """
    ours, theirs = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    apart = ours != theirs  # equal infinities are no difference
    difference = np.abs(ours[apart] - theirs[apart])
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))


def require_parity(actual: npt.ArrayLike, expected: npt.ArrayLike, where: str) -> dict[str, Any]:
    """Refuse an export that computes something else.

    Parameters
    ----------
    actual, expected : arrays of log-probabilities
        Of the exported graph, and of the model it was made from.
    where : str
        What is compared, for the message.

    Returns
    -------
    dict
        Facts for the manifest: ``parity``, the largest difference in log-prob, and ``parity_allowed``.

    Raises
    ------
    AdvpriorError
        ``PRI004`` above `allowed_difference`, or when a number is not finite on one side alone.

    Examples
    --------
    >>> require_parity([-1.0, -3.0], [-1.0, -3.0], "model.onnx")
    {'parity': 0.0, 'parity_allowed': 0.0001}
    """
    difference, allowed = largest_difference(actual, expected), allowed_difference(expected)
    if not difference <= allowed:
        raise AdvpriorError(
            "PRI004",
            "the exported graph differs from the model",
            where=where,
            actual=f"{difference:.2e} in log-prob",
            expected=f"at most {allowed:.1e}, for log-probs of this size",
            fix="advprior export RUN --force, with the locked versions",
        )
    return {"parity": difference, "parity_allowed": allowed}


def worst(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several results of `require_parity` the one nearest to its limit, and ``cases``: how many there are.

    Examples
    --------
    >>> worst([{"parity": 1e-5, "parity_allowed": 1e-4}, {"parity": 2e-5, "parity_allowed": 4e-4}])
    {'parity': 1e-05, 'parity_allowed': 0.0001, 'cases': 2}
    """
    return {**max(checks, key=lambda check: check["parity"] / check["parity_allowed"]), "cases": len(checks)}
