"""transformers, imported without scikit-learn: 0.9 of the 5.3 CPU-seconds that an LLM's fit takes to import.

transformers 4.57 loads it, and `scipy.stats` with it, for one curve of assisted generation, which nothing here does.
"""

from __future__ import annotations

import sys


def import_transformers() -> None:
    """Let transformers find no scikit-learn; to be called before anything is imported of it.

    A scikit-learn that is loaded already stays, and one can be imported afterwards. A transformers that is loaded
    already stays as it is.

    Examples
    --------
    >>> import_transformers()
    >>> import transformers
    """
    if "sklearn" in sys.modules or "transformers" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # to transformers it is not installed
    try:
        import transformers.utils.import_utils  # noqa: F401  # what there is, transformers looks up once
    finally:
        del sys.modules["sklearn"]
