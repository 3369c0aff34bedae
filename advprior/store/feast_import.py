"""Feast, imported at a quarter of the processor time, and its command line run that way.

`import feast` takes 6.4 CPU-seconds (0.67.0, Python 3.11, two cores), more than many a step of a project does with
it: 1.8 of them load torch for `to_tensor` alone, which Feast expects to be missing where it is not installed; 3 let
typeguard compile its classes anew, so that they check the types of their arguments. Without both it takes 1.5.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def light_feast_import() -> Iterator[None]:
    """Let Feast be imported inside without torch, and without checks of its arguments' types.

    A torch that is loaded already stays, and one can be imported afterwards. Nothing else of Feast changes; a Feast
    that is loaded already stays as it is.

    Examples
    --------
    >>> with light_feast_import():
    ...     from feast import FeatureStore
    """
    import typeguard

    absent = "torch" not in sys.modules
    checked = typeguard.typechecked
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # to Feast it is not installed
    typeguard.typechecked = _unchanged
    try:
        yield
    finally:
        typeguard.typechecked = checked
        if absent:
            del sys.modules["torch"]


def _unchanged(target: Any = None, **_: Any) -> Any:
    """In place of `typeguard.typechecked`: the class or function as it is."""
    return _unchanged if target is None else target


def feast_command() -> None:
    """Run Feast's own command line: ``python -m advprior.store.feast_import -c REPO apply``."""
    with light_feast_import():
        from feast.cli.cli import cli
    cli(prog_name="feast")


if __name__ == "__main__":
    feast_command()
