"""transformers comes without scikit-learn, which stays to be had."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import importlib.util, sys
from advprior.predictors.tuning.transformers_import import import_transformers
import_transformers()
from transformers.utils import is_sklearn_available
assert not is_sklearn_available()
assert not {"sklearn", "scipy"} & set(sys.modules)
assert importlib.util.find_spec("sklearn") is not None
"""


def test_transformers_finds_no_scikit_learn() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROBE], check=True)
