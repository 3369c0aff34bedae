"""Small canonical tables for the tests of what reads them."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.tiny import tiny_tables


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    return tiny_tables(users=8)
