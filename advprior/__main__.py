"""`python -m advprior` is the `advprior` command."""

import os
import sys
from pathlib import Path

# Python puts the working directory first: a user's own folder `ranking` or `feature_repo` would be taken for ours.
_HERE = os.getcwd()
if not sys.flags.safe_path and sys.path and sys.path[0] == _HERE and Path(__file__).resolve().parents[1] != Path(_HERE):
    del sys.path[0]

from advprior.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
