"""One small feature repository for all tests of the frame; a test that changes it takes a copy."""

from __future__ import annotations

import pytest

from advprior.store.contract import LLM, POPULARITY
from ranking.frame.publish import publish_features
from tests.ranking.stores import Workspace, apply, copy_repo, publish_priors
from tests.tiny import write_tiny


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("frame")
    tables, repo = write_tiny(root / "tables"), copy_repo(root / "feature_repo")
    publish_features(tables, repo)
    publish_priors(repo, tables, LLM, seed=1)
    publish_priors(repo, tables, POPULARITY, seed=2)
    apply(repo)
    return Workspace(tables, repo)
