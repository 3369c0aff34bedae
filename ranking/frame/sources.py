"""The files behind a user's own views: a frame is built anew when one of them has changed.

Our own views are published with manifests, whose digests are part of a frame's key. Nobody writes one for a user's
view: its files' digests stand in the frame's manifest, where the next call finds them without importing Feast.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from advprior.store.runs import digest, read_manifest, sha256_file
from ranking.frame.views import is_ours


def source_digests(store: Any, refs: Iterable[str]) -> dict[str, str]:
    """Digest of each local file or folder that a joined view of a user's own reads, by path.

    Parameters
    ----------
    store : feast.FeatureStore
    refs : iterable of str
        ``view:feature`` references.
    """
    joined = {ref.split(":")[0] for ref in refs}
    own = [view for view in store.list_feature_views() if view.name in joined and not is_ours(view.name)]
    paths = [Path(str(getattr(view.batch_source, "path", "")).removeprefix("file://")) for view in own]
    return {str(path): _digest(path) for path in paths if path.name and path.exists()}


def sources_unchanged(frame: Path) -> bool:
    """Whether the files behind a user's own views are as they were when a finished frame was built."""
    sources: dict[str, str] = read_manifest(frame)["facts"].get("own_sources", {})
    return all(Path(path).exists() and _digest(Path(path)) == before for path, before in sources.items())


def _digest(path: Path) -> str:
    if path.is_file():
        return sha256_file(path)
    return digest({str(p.relative_to(path)): sha256_file(p) for p in sorted(path.rglob("*")) if p.is_file()})
