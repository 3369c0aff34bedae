"""The device of a fit: the option, the project, then what torch has; each of several processes has its own card."""

from __future__ import annotations

from pathlib import Path

import pytest

from advprior.store.device import computing_on, device_name, device_setting, process
from advprior.store.errors import AdvpriorError
from advprior.store.project_files import PROJECT_FILE


def test_the_option_comes_before_the_project_and_that_before_auto(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert device_setting(None, tmp_path) == "auto"
    (tmp_path / PROJECT_FILE).write_text("tables: {folder: tables}\n")
    assert device_setting(None, tmp_path) == "auto"
    (tmp_path / PROJECT_FILE).write_text("device: cuda:1\n")
    assert device_setting(None, tmp_path / "below") == device_setting(None) == "cuda:1"
    assert device_setting("cpu", tmp_path) == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:0,1", ""])
def test_what_is_no_device_is_refused(tmp_path: Path, device: str) -> None:
    (tmp_path / PROJECT_FILE).write_text(f"device: '{device}'\n")
    for ask in (lambda: device_setting(device), lambda: device_setting(None, tmp_path)):
        with pytest.raises(AdvpriorError, match="PRI031"):
            ask()


@pytest.mark.parametrize(
    ("device", "cards", "name"),
    [
        *[("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
        *[("cuda", 0, None), ("cuda:1", 1, None)],
    ],
)
def test_auto_takes_a_card_where_there_is_one_and_what_is_asked_for_is_never_replaced(
    device: str, cards: int, name: str | None
) -> None:
    with computing_on(device):
        if name is not None:
            assert device_name(cards) == name
            return
        with pytest.raises(AdvpriorError, match="PRI031"):
            device_name(cards)
    assert device_name(0) == "cpu"  # as before


def test_each_of_several_processes_has_a_card_of_its_own(monkeypatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert device_name(2) == "cuda:1"
    assert process() == 3
    for device, cards in (("cuda", 1), ("cuda:0", 2), ("auto", 1)):
        with computing_on(device), pytest.raises(AdvpriorError, match="process 3 of 2"):
            device_name(cards)
