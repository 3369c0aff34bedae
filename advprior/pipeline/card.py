"""The model card of a fitted predictor: what it is, how good it is, where it ends, and code that runs.

Every figure comes from the run's own manifests and, when given, from an evaluation of this very run: a card is never
written by hand, so that it cannot say more than was measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest

#: Licences of base models that are known to us; others are named by their own cards.
LICENCES = {"HuggingFaceTB/SmolLM2": "apache-2.0"}
MARK = "library_name: advprior"

SNIPPET = """\
from datetime import datetime
from pathlib import Path

import numpy as np

from advprior.history.histories import build_histories, micros
from advprior.predictors.registry import load_predictor
from advprior.store.tables import load_tables

RUN, TABLES = Path({run}), Path("tables")  # this model, and canonical tables (advprior data)

predictor = load_predictor(RUN)
tables = load_tables(TABLES, "users", "advertisers", "events")
histories = build_histories(tables["users"], tables["events"], predictor.catalog)
snapshot = micros(datetime.fromisoformat({cutoff}))  # only events before it are seen

priors = predictor.scorer(RUN / "onnx", device="cpu").score(histories, np.array([0]), np.array([snapshot]))
print("user", histories.users[0])
for advertiser in np.argsort(-priors[0, 0])[:5]:
    print(f"{{np.exp(priors[0, 0, advertiser]):.3f}}", predictor.catalog.names[advertiser])"""


def write_card(run: Path, out: Path, *, measured: dict[str, Any] | None = None) -> None:
    """Write `card` to ``out``; a file that is no card of ours is kept.

    Raises
    ------
    AdvpriorError
        What `card` raises, and ``PRI047`` when ``out`` holds something else.
    """
    text = card(run, measured=measured)
    if out.exists() and MARK not in _head(out):
        raise AdvpriorError(
            "PRI047",
            "the card would replace something that is no model card",
            where=str(out),
            expected=f"a new file, or a card with `{MARK}`",
            fix="choose another --out",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


def card(run: Path, *, measured: dict[str, Any] | None = None) -> str:
    """The model card of an exported run, in Hugging Face form.

    Parameters
    ----------
    run : Path
        Fitted (``advprior finetune``) and exported (``advprior export``).
    measured : dict, optional
        What an evaluation says of this run (`advprior.evaluation.of_run.measured`).

    Raises
    ------
    AdvpriorError
        ``RUN001`` for a run that is not fitted or not exported.
    """
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from advprior.predictors.llm.fit_lines import decision_lines
    from advprior.predictors.quality import learned_nothing
    from advprior.predictors.registry import load_predictor

    fitted = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    export = read_manifest(run / "onnx", step="export", fix=f"advprior export {run}")
    facts, settings = fitted["facts"], _portable(fitted["config"]["settings"])
    predictor = load_predictor(run)
    kind = predictor.kind
    base = _base(facts.get("base"))
    environment = Environment(
        loader=PackageLoader("advprior", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )

    def as_yaml(value: Any) -> str:
        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip()

    return environment.get_template("card.md.j2").render(
        name=run.resolve().name,
        predictor=kind,
        summary=_first_line(type(predictor).__doc__),
        uses_llm=bool(getattr(predictor, "uses_llm", base is not None)),
        twin=_random_weights(settings),
        base=base,
        licence=base and base["licence"],
        facts={"history_start": None, "trained_until": None, "words": None, **facts},
        tables=fitted["inputs"].get("tables", ""),
        export=export["facts"],
        versions=", ".join(f"{name} {version}" for name, version in fitted["versions"].items()),
        evaluation=measured,
        metrics=measured["metrics"] if measured else {},
        valid=as_yaml(_portable(facts.get("valid", {}))),
        snippet=SNIPPET.format(
            run=json.dumps(run.name if run.is_absolute() else run.as_posix()), cutoff=json.dumps(facts["model_cutoff"])
        ),
        settings=as_yaml(settings),
        reads="; ".join(predictor.reads),
        reads_profile=predictor.reads_profile,
        learned_nothing=learned_nothing(facts),
        decisions=decision_lines(facts),
    )


def _random_weights(settings: Any) -> bool:
    """Whether the settings take a network without its pre-training, at their top or of their encoder."""
    if not isinstance(settings, dict):
        return False
    return bool(settings.get("twin") or (settings.get("encoder") or {}).get("twin"))


def _base(origin: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is known of the base; a path of the machine it was fitted on is cut to its last part."""
    if origin is None:
        return None
    source = str(origin["source"])
    hub = source.count("/") == 1 and not source.startswith((".", "/", "~")) and origin["kind"] not in ("folder", "gguf")
    licence = next((licence for prefix, licence in LICENCES.items() if hub and source.startswith(prefix)), None)
    bits = re.match(r"I?Q(\d)", str(origin.get("stored_as", "")))
    return {
        "revision": None,
        "stored_as": None,
        "encoder": None,
        "bits": bits.group(1) if bits else None,
        **origin,
        "source": source if hub else Path(source).name,
        "hub_id": source if hub else None,
        "licence": licence,
    }


def _portable(value: Any) -> Any:
    """The same without paths of the machine: of each its last part."""
    if isinstance(value, dict):
        return {key: _portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_portable(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value


def _first_line(doc: str | None) -> str:
    line = (doc or "A predictor.").strip().splitlines()[0].rstrip(".") + "."
    return line[0].upper() + line[1:]


def _head(path: Path) -> str:
    try:
        return path.read_text()[:2000]
    except (OSError, UnicodeDecodeError):
        return ""
