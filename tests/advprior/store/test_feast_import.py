"""Feast as we import it: the same Feast, without torch and without checks of its arguments' types."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typeguard

from advprior.store.feast_import import light_feast_import

PROBE = """
import typeguard
from advprior.store.feast_import import light_feast_import
checked = typeguard.typechecked
with light_feast_import():
    from feast import Entity, ValueType
assert typeguard.typechecked is checked
import sys
assert "torch" not in sys.modules
assert Entity(name="user", value_type=ValueType.STRING, description=3).description == 3  # typeguard would refuse 3
"""


def test_feast_comes_without_torch_and_checks_of_types():
    subprocess.run([sys.executable, "-c", PROBE], check=True, timeout=600)


def test_everything_is_as_before_afterwards():
    checked, torch = typeguard.typechecked, sys.modules.get("torch")
    with light_feast_import():
        assert typeguard.typechecked(int) is int
        assert typeguard.typechecked(forward_refs_policy=None)(int) is int
    with pytest.raises(ZeroDivisionError), light_feast_import():
        1 / 0  # noqa: B018
    assert typeguard.typechecked is checked
    assert sys.modules.get("torch") is torch


def test_the_command_line_is_feasts_own():
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-P", "-m", "advprior.store.feast_import", "apply", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    assert "Usage: feast apply" in done.stdout
