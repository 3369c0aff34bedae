"""A user's own folder for the tests of `advprior data check`: renamed columns, a mapping, and the command on it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from advprior.cli import main
from advprior.store.contract import TABLES
from tests.tiny import PLAN

RENAMED = {"users": {"user_id": "customer"}, "events": {"user_id": "customer", "timestamp": "at", "value": "spent"}}


def write_own(folder: Path, tables: dict[str, pd.DataFrame], **changes: object) -> Path:
    """A user's own folder: renamed columns, no canonical types, and a mapping that says so."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if name == "users":
            table = table.rename(columns={"profile_age": "age_band", "profile_region": "where"})
        if name == "impressions":
            table = table.rename(columns={"context_placement": "slot"})
        table.rename(columns=RENAMED.get(name, {})).to_parquet(folder / f"{name}.parquet")
    mapping = {
        "tables": {name: {"file": f"{name}.parquet", "columns": RENAMED.get(name, {})} for name in TABLES},
        "time_plan": {
            "finetune_end": PLAN.finetune_end.isoformat(),
            "train_end": PLAN.train_end.isoformat(),
            "valid_end": PLAN.valid_end.isoformat(),
            "snapshot_every": "14d",
            "lag": "30m",
        },
    }
    mapping["tables"]["users"]["profile"] = {"age": "age_band", "region": "where"}
    mapping["tables"]["impressions"]["context"] = {"placement": "slot"}
    mapping |= changes
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["data", "check", *map(str, arguments)])
    except SystemExit as leave:
        code = int(leave.code or 0)
    text = capsys.readouterr()
    return code, text.out, text.err


def refused(capsys, tmp_path, mapping: Path, code: str, *parts: str) -> str:
    """Check that the mapping is refused with ``code`` and ``parts``, and that nothing is written."""
    before = sorted(p for p in tmp_path.rglob("*"))
    exit_code, out, err = run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    assert exit_code == 2
    assert err.startswith(f"error {code}: ")
    for part in parts:
        assert part in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(p for p in tmp_path.rglob("*")) == before
    return err


def without(mapping: Path, *names: str) -> Path:
    """The mapping less the blocks of these tables."""
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"] = {name: block for name, block in raw["tables"].items() if name not in names}
    mapping.write_text(yaml.safe_dump(raw))
    return mapping
