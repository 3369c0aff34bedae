"""A shared folder is made once, by whoever comes first, and anew where that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared import made_once


def test_it_is_made_once_and_again_only_after_a_failure(tmp_path_factory: pytest.TempPathFactory) -> None:
    calls: list[Path] = []

    def make(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "half").write_text("")
        calls.append(folder)
        if len(calls) == 1:
            raise OSError("no space")

    name = "of this test"
    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path_factory, name, make)
    assert made_once(tmp_path_factory, name, make) == made_once(tmp_path_factory, name, make) == calls[1]
    assert len(calls) == 2
