"""What an ablation measured: shown, compared, saved and loaded."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advprior.store.arrays import Double
from advprior.store.contract import IMPRESSION_ID, LABEL, SLATE_ID, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, new_run, read_manifest, write_json
from advprior.store.tables import read_parquet, write_parquet
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.deciding import SLOTS, metric_named, metrics_at
from ranking.evidence.lift import OVERALL, Lifts, as_lifts
from ranking.evidence.metrics import Auc, Metric
from ranking.evidence.rankers import MEASURED, row_digest
from ranking.evidence.segments import SEGMENT_PREFIX
from ranking.evidence.verdict import Verdict
from ranking.evidence.wording import segment_label
from ranking.frame.checks import check_same_test_rows, enforce
from ranking.models.arms import Arms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "rank ablate"
ABLATION_FILE = "ablation.json"
PREDICTIONS_FILE = "predictions.parquet"
VALID_FILE = "valid.parquet"  # the validation rows' scores, in the same form: what is chosen is chosen on them
DECIDED = "decided"  # in place of a metric: the one that the verdict is about
SEEDS_FILE = "seeds.parquet"  # the same rows' scores of each single ranker, as ``<arm>.<seed>``
_FIX = "advprior rank ablate --frame FRAME --out ABLATION"


@dataclass(frozen=True, eq=False)
class Validation:
    """Scores of the validation rows.

    Parameters
    ----------
    ids : array [validation rows]
        Impression of each row.
    scores : dict of str to list of float array [validation rows]
        Calibrated probabilities of each arm, one array per seed.
    """

    ids: NDArray[Any]
    scores: dict[str, list[Double]]


@dataclass(repr=False)
class AblationResult:
    """What an ablation measured.

    Parameters
    ----------
    arms : Arms
        Those that were measured.
    lifts : Lifts
        Every arm against the baseline, and the treatments against every control and placebo.
    verdict : Verdict
    best_control : str or None
        The first treatment's control with the best AUC on validation rows.
    measured : DataFrame
        Every metric of every ranker: columns arm, seed, split, segment, metric, value.
    about : dict
        Splits, segments, importance, calibration, provenance.
    rows : DataFrame or None
        Test rows: impression_id, user_id, slate_id, label, segments; None in a loaded result until `load_scores`.
    scores : dict of str to list of array
        Test probabilities of each arm, one array per seed, in the order of ``rows``.
    folder : Path or None
        Where it was loaded from.
    best_controls : dict of str to str
        Each treatment's best control on validation rows. `lifts` holds the comparison with it, and with the
        treatment's placebo, on every metric and segment.
    validation : Validation or None
        Scores of the validation rows; None in a pooled result, and in a loaded one until `load_scores`.
    """

    arms: Arms
    lifts: Lifts
    verdict: Verdict
    best_control: str | None
    measured: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)
    rows: pd.DataFrame | None = None
    scores: dict[str, list[Double]] = field(default_factory=dict)
    folder: Path | None = None
    best_controls: dict[str, str] = field(default_factory=dict)
    validation: Validation | None = None

    @property
    def metric(self) -> Metric:
        """What its verdict is about; AUC in a result of an earlier version."""
        return metric_named(self.about.get("settings", {}).get("decide_on", Auc.name))

    @property
    def slots(self) -> int:
        """Shown ads of a slate when conversions are counted."""
        return int(self.about.get("settings", {}).get("slots", SLOTS))

    def frame(self) -> pd.DataFrame:
        """Lifts, one row per arm, baseline, metric and segment."""
        return self.lifts.frame()

    def table(self, segment: str = OVERALL) -> pd.DataFrame:
        """Metrics of every arm on test rows, means over seeds: one row per arm, one column per metric."""
        chosen = self.measured[(self.measured["split"] == "test") & (self.measured["segment"] == segment)]
        wide = chosen.pivot_table(
            index="arm", columns="metric", values="value", aggfunc="mean", sort=False, dropna=False
        )
        return wide.reindex(index=[arm.name for arm in self.arms.arms])

    def value(self, load: int = 5) -> pd.DataFrame:
        """Conversions per slate and concentration of advertisers at an ad load, one row per arm."""
        rows = [row for row in self.about["value"] if row["load"] == load]
        return pd.DataFrame(rows).set_index("arm")

    def compare(self, a: str, b: str, metric: str | None = DECIDED) -> Lifts:
        """Arm ``a`` minus arm ``b``, overall and in every segment.

        Parameters
        ----------
        a, b : str
            Names of two arms that were measured.
        metric : str or None
            Name of a metric that has lifts, such as ``auc`` or ``conversions_5``; ``decided`` is the verdict's, None
            stands for all of them.

        Raises
        ------
        AdvpriorError
            ``RNK021`` when an arm was not measured; ``DAT001`` when a loaded result has no scores beside it.
        """
        for name in (a, b):
            self.arms.find(name)
        lifts = Lifts(lift for lift in self.lifts if (lift.arm, lift.baseline) == (a, b))
        if not lifts:
            self.load_scores()
            scores = {name: self.scores[name] for name in (a, b)}
            options = Resampling(metrics_at(self.slots), self.about["settings"]["replicates"])
            lifts = paired_bootstrap(scores, self._outcomes(), [(a, b)], options)
        wanted = self.metric.name if metric == DECIDED else metric
        return Lifts(lift for lift in lifts if wanted in (None, lift.metric))

    def plot(self, metric: str | None = None) -> Figure:
        """Lift over the baseline with intervals, overall and by segment.

        Parameters
        ----------
        metric : str, optional
            Name of a metric that has lifts, such as ``auc`` or ``conversions_5``; the verdict's by default.
        """
        from ranking.evidence.plots import forest

        metric = metric or self.metric.name

        arms = [arm for arm in self.arms.arms if not arm.is_baseline]
        lifts = self.frame()
        lifts = lifts[(lifts["baseline"] == self.arms.baseline.name) & (lifts["metric"] == metric)]
        segments = [{"name": s, **self.about["segments"][s]} for s in self.segments]
        axis = (
            f"Difference in {metric_named(metric).label} from “{self.arms.baseline.label}”, with {self.level} interval"
        )
        return forest(lifts, pd.DataFrame([arm.model_dump() for arm in arms]), pd.DataFrame(segments), axis)

    @property
    def level(self) -> str:
        """Nominal coverage of the intervals, as ``95 %``."""
        return f"{100 * self.lifts[0].level:.0f} %" if self.lifts else "95 %"

    @property
    def segments(self) -> list[str]:
        """Overall first."""
        return list(self.about["segment_order"])

    def __repr__(self) -> str:
        """One screen, however many arms there are: the verdict, then value and lift of each; `frame` has everything."""
        sentence = textwrap.shorten(self.verdict.sentence, 900, placeholder=" …")
        lines = [textwrap.shorten(self.verdict.headline, 100, placeholder=" …"), *textwrap.wrap(sentence, 110)]
        shown = [(label[:40], value, lift) for label, value, lift in self._lines([OVERALL])[:12]]
        width, name = max(len(label) for label, _, _ in shown), self.metric.label
        wide = max(len(name), 6)
        lines += ["", f"{'arm':<{width}}  {name:>{wide}}  difference from the baseline, {self.level} interval"]
        lines += [f"{label:<{width}}  {value:>{wide}}  {lift}" for label, value, lift in shown]
        if len(self.arms.arms) > len(shown):
            lines.append(f"… {len(self.arms.arms) - len(shown)} more arms: .frame()")
        if self.verdict.others:
            lines.append("every other arm on trial has a line in .verdict.others")
        return "\n".join([*lines, "", ".plot() .frame() .table() .compare(a, b) .save(folder)"])

    def _repr_html_(self) -> str:
        name = self.metric.label
        head = ["Arm", name, *(f"Δ{name}, {segment_label(s)}" for s in self.segments)]
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self._lines(self.segments)
        )
        return (
            f"<p><b>{escape(self.verdict.headline)}.</b> {'<br>'.join(map(escape, self.verdict.sentences))}</p>"
            "<table><thead><tr>"
            f"{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _lines(self, segments: list[str]) -> list[list[str]]:
        """Label, value and lifts of each arm, on the verdict's metric."""
        baseline, metric, lines = self.arms.baseline.name, self.metric.name, []
        value = self.table()[metric]
        for arm in self.arms.arms:
            cells = ["baseline"]
            if not arm.is_baseline:
                cells = [self.lifts.get(arm.name, baseline, metric, s).text() for s in segments]
            lines.append([arm.label, f"{float(value[arm.name]):.4f}", *cells])
        return lines

    def predictions(self) -> pd.DataFrame:
        """Test rows, and one column per arm: the mean of its calibrated probabilities over seeds."""
        self.load_scores()
        assert self.rows is not None
        means = {name: np.mean(of_arm, axis=0).astype(np.float32) for name, of_arm in self.scores.items()}
        return self.rows.assign(**means)

    def facts(self) -> dict[str, Any]:
        """What the manifest of its folder keeps: the verdict, and which arm is worth training."""
        kinds = {self.arms.on_trial[0].name: self.verdict.kind} | {one.arm: one.kind for one in self.verdict.others}
        worth = next((name for name, kind in kinds.items() if kind == "win"), None)
        if worth is None and self.verdict.kind == "win_not_over_control":
            worth = self.best_control
        arm = self.arms.find(worth) if worth else self.arms.on_trial[0]
        return {
            "verdict": self.verdict.sentence,
            "others": [one.sentence for one in self.verdict.others],
            "kind": self.verdict.kind,
            "one_seed": self.verdict.one_seed,
            "note": self.about["frame_facts"].get("data", {}).get("note"),
            "arm": arm.name,
            "service": arm.service,
            "worth": worth is not None,
        }

    def save(self, folder: str | Path) -> Path:
        """Write a finished run: ``ablation.json``, predictions, scores by seed and a manifest.

        What it writes is an ablation as any other: `load`, ``advprior rank report`` and ``rank pool`` take it.

        Raises
        ------
        AdvpriorError
            When the folder holds something else.
        """
        arms = self.arms.model_dump(mode="json")
        config = {"arms": arms, **self.about["settings"]}
        key = digest({"config": config, "rows": self.about["test_rows"], "measured": self.measured["value"].tolist()})
        with new_run(Path(folder), STEP, config=config, inputs={}, key=key) as run:
            self.write(run.path)
            run.facts.update(self.facts())
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Write the files of a run without its manifest."""
        content = {
            "arms": self.arms.model_dump(),
            "lifts": [asdict(lift) for lift in self.lifts],
            "verdict": self.verdict.to_json(),
            "best_control": self.best_control,
            "best_controls": self.best_controls,
            "measured": self.measured.to_dict("records"),
            **self.about,
        }
        write_json(Path(folder) / ABLATION_FILE, without_nan(content))
        if self.rows is None:
            return
        write_parquet(self.predictions(), Path(folder) / PREDICTIONS_FILE)
        write_parquet(self.rows[[IMPRESSION_ID]].assign(**_by_seed(self.scores)), Path(folder) / SEEDS_FILE)
        if self.validation is not None:
            ids = pd.DataFrame({IMPRESSION_ID: self.validation.ids})
            write_parquet(ids.assign(**_by_seed(self.validation.scores)), Path(folder) / VALID_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> AblationResult:
        """Read a finished ablation.

        Raises
        ------
        AdvpriorError
            ``RUN001`` … ``RUN003`` when the folder is none, ``RNK026`` when its file cannot be read.
        """
        folder = Path(folder)
        read_manifest(folder, step=STEP, fix=_FIX)
        path = folder / ABLATION_FILE
        try:
            about = json.loads(path.read_text())
            verdict = about.pop("verdict")
            return cls(
                Arms.model_validate(about.pop("arms")),
                as_lifts(about.pop("lifts")),
                Verdict.from_json(verdict),
                about.pop("best_control"),
                pd.DataFrame(about.pop("measured"), columns=MEASURED).astype({"value": np.float64}),
                folder=folder,
                best_controls=about.pop("best_controls", {}),
                about=about,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdvpriorError(
                "RNK026", "the ablation cannot be read", where=str(path), actual=str(error).splitlines()[0], fix=_FIX
            ) from error

    def load_scores(self) -> AblationResult:
        """Read rows and scores of a loaded result, once; the result itself.

        Raises
        ------
        AdvpriorError
            As `load_seeds` does.
        """
        if self.rows is None and self.folder is not None:
            table, self.scores = load_seeds(self.folder)
            names = [IMPRESSION_ID, USER_ID, SLATE_ID, LABEL, *(SEGMENT_PREFIX + s for s in self.segments[1:])]
            self.rows = table[names]
            self.validation = load_validation(self.folder)
        return self

    def _outcomes(self) -> Outcomes:
        assert self.rows is not None
        segments = {s: self.rows[SEGMENT_PREFIX + s].to_numpy(bool) for s in self.segments[1:]}
        return Outcomes.of(
            self.rows[LABEL], self.rows[USER_ID].astype(str), slate=self.rows[SLATE_ID], segments=segments
        )


def load_validation(folder: Path) -> Validation | None:
    """Scores of the validation rows of a finished ablation; None of one by an earlier version."""
    path = Path(folder) / VALID_FILE
    if not path.is_file():
        return None
    table = read_parquet(path, fix=f"{_FIX} --force")
    return Validation(table[IMPRESSION_ID].to_numpy(), _of_seeds(table))


def _by_seed(scores: Mapping[str, Sequence[Double]]) -> dict[str, NDArray[np.float32]]:
    """Columns ``<arm>.<seed>``."""
    return {
        f"{arm}.{seed}": score.astype(np.float32) for arm, of_arm in scores.items() for seed, score in enumerate(of_arm)
    }


def _of_seeds(table: pd.DataFrame) -> dict[str, list[Double]]:
    """What `_by_seed` made."""
    scores: dict[str, list[Double]] = {}
    for column in table.columns:
        if "." in str(column):
            scores.setdefault(str(column).split(".")[0], []).append(table[column].to_numpy(np.float64))
    return scores


def load_seeds(folder: Path) -> tuple[pd.DataFrame, dict[str, list[Double]]]:
    """Test rows of a finished ablation, and each arm's scores by seed, in the same order.

    Raises
    ------
    AdvpriorError
        ``RUN001`` … ``RUN003``, ``DAT001``, ``DAT002``; ``RNK006`` when the two files are of different rows.
    """
    fix = f"{_FIX} --force"
    read_manifest(folder, step=STEP, fix=fix)
    rows = read_parquet(Path(folder) / PREDICTIONS_FILE, fix=fix)
    by_seed = read_parquet(Path(folder) / SEEDS_FILE, fix=fix)
    digests = {
        name: row_digest(table[IMPRESSION_ID].to_numpy(), np.zeros(0))
        for name, table in ((PREDICTIONS_FILE, rows), (SEEDS_FILE, by_seed))
    }
    enforce([check_same_test_rows(digests)], str(folder))
    return rows, _of_seeds(by_seed)


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes null."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value
