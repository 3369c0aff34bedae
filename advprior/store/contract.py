"""Names that both sides of the store agree on: tables, columns, views, services, time.

Standard library only, so that anything may import it at no cost. Vocabulary: an *impression* is
one ad shown once; a *slate* the ads shown together; a *snapshot* the UTC cut-off a history ends at;
a *prior* log P(advertiser | history), normalised over the catalog.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# -- canonical tables (``<tables>/<name>.parquet``) ------------------------------------------------
USERS, ADVERTISERS, ADS, EVENTS, IMPRESSIONS = TABLES = (
    "users",
    "advertisers",
    "ads",
    "events",
    "impressions",
)

#: What a ranker needs and a predictor does not: data that measures a predictor only has neither of the two.
SHOWN_TABLES = (ADS, IMPRESSIONS)
#: ``facts["purpose"]`` in the manifest of such tables; absent where all five are there.
PREDICTOR_ONLY = "predictor"

USER_ID = "user_id"
ADVERTISER_ID = "advertiser_id"
AD_ID = "ad_id"
NAME = "name"
CATEGORY = "category"
TIMESTAMP = "timestamp"
VALUE = "value"
TEXT = "text"
DEPARTMENT = "department"  # ads, events, advertisers: what a category belongs to [nothing coarser than a category]
CLUSTER = "cluster"  # ads, events: what is alike by what is written of it [of an event: its advertiser × category's ad]
IMPRESSION_ID = "impression_id"
SLATE_ID = "slate_id"
LABEL = "label"
# Optional columns. Where one is absent or empty, the default in brackets holds.
KNOWN_FROM = "known_from"  # users, ads: time from which the row exists [first event or impression; an ad's first one]
ARRIVED = "arrived"  # events: when the log got to know of the row [timestamp]
KIND = "kind"  # events: what it is, in a word, e.g. visit or conversion
CLICKED = "clicked"  # impressions: 0 or 1
LABEL_TIME = "label_time"  # impressions: when a positive came about; empty for a negative
#: How long after its impression a label is complete, where nobody says it.
LABEL_DELAY = timedelta(days=7)
PROFILE_PREFIX = "profile_"  # users: every other column is one profile field, text or missing
CONTEXT_PREFIX = "context_"  # impressions: what is known of the request itself
POSITION = f"{CONTEXT_PREFIX}position"  # of an ad in its slate: not known before ranking, so served at one reference

# -- Feast ------------------------------------------------------------------------------------------
EVENT_TIMESTAMP = "event_timestamp"  # when a row became available (snapshot + lag)
CREATED_TIMESTAMP = "created_timestamp"
SNAPSHOT = "snapshot"  # the cut-off of what the row has seen: events strictly before it
MODEL_CUTOFF = "model_cutoff"  # no label at or after this trained the model behind the row, or chose it
CATALOG_VERSION = "catalog_version"

USER_PROFILE_VIEW = "user_profile"
USER_HISTORY_VIEW = "user_history"
AD_STATS_VIEW = "ad_stats"
PRIOR_VIEW_PREFIX = "prior_"

HISTORY_ROW = "history_row"  # pointer into the published history file, gathered after the join
PRIOR_ROW = "prior_row"  # pointer into the published log-prob matrix, gathered after the join
LOG_PROBS = "log_probs"  # float32, the vector as served online: [N] in catalog order, or [K] where TOP_INDEX is there
# Above a catalog size only the K likeliest advertisers of a row are kept, best first. The other N - K share the rest
# of the probability evenly: log P = TAIL_LOG_MASS - log(N - K).
TOP_INDEX = "top_index"  # [K] int64: whose log-probabilities LOG_PROBS holds
TAIL_LOG_MASS = "tail_log_mass"  # float32: log of the probability that the K do not have
PRIOR_SCALARS = ("entropy", "top1_index", "top1_log_prob")

#: Whose priors the store may hold. ``placebo`` is the LLM's, shuffled between the users of a snapshot; ``twin`` is an
#: LLM of random weights; ``text`` goes by the advertisers' texts alone.
LLM, POPULARITY, NEIGHBOURS, PLACEBO, SASREC, HYBRID, TWIN, ZERO_SHOT, CATALOG_TEXT, EASE, L3AE = PREDICTORS = (
    "llm",
    "popularity",
    "neighbours",
    "placebo",
    "sasrec",
    "hybrid",
    "twin",
    "zero_shot",
    "text",
    "ease",
    "l3ae",
)
#: Predictors whose priors come of a pre-trained language model: their random-weight control says what that earned.
PRETRAINED = (LLM, HYBRID, CATALOG_TEXT, L3AE, ZERO_SHOT)
#: Those that read advertisers from their texts alone: a lexical control reads the same texts without a network.
READS_TEXTS = (HYBRID, CATALOG_TEXT, L3AE)

#: The encoder that is none: words in the place of a network. As a setting, and as the name of the control.
LEXICAL = "lexical"

BASELINE_SERVICE = "ranker_baseline_v1"
WITH_PRIORS_SERVICE = "ranker_with_priors_v1"


def pair_id(advertiser: str, category: str) -> str:
    """Id of an advertiser's category where a catalog lists pairs in the place of advertisers.

    Slashes of the advertiser are doubled, so that no two pairs share an id.

    >>> pair_id("m1", "Tea"), pair_id("Home", "Garden / Tools"), pair_id("Home / Garden", "Tools")
    ('m1 / Tea', 'Home / Garden / Tools', 'Home // Garden / Tools')
    """
    return f"{advertiser.replace('/', '//')} / {category}"


def shuffled_source(name: str) -> str | None:
    """Whose priors a placebo shuffles, by its name; None for priors that are no placebo.

    >>> shuffled_source("placebo"), shuffled_source("placebo_text_pair"), shuffled_source("text_pair")
    ('llm', 'text_pair', None)
    """
    if name == PLACEBO:
        return LLM
    return name.removeprefix(f"{PLACEBO}_") if name.startswith(f"{PLACEBO}_") else None


def prior_view(predictor: str) -> str:
    """Name of the feature view that holds one predictor's priors.

    >>> prior_view("llm")
    'prior_llm'
    """
    return PRIOR_VIEW_PREFIX + predictor


def prior_service(predictor: str) -> str:
    """Name of the feature service: the baseline's features plus one predictor's priors.

    >>> prior_service("llm"), prior_service("neighbours")
    ('ranker_with_priors_v1', 'ranker_with_neighbours_v1')
    """
    return WITH_PRIORS_SERVICE if predictor == LLM else f"ranker_with_{predictor}_v1"


# -- files of a published view: ``<repo>/data/<view>/`` (a link to the current version) --------------
TABLE_FILE = "table.parquet"
# Arrays have the name of a ``.npy``, which is how earlier versions wrote them; `advprior.store.matrix` writes them
# compressed, as ``.parquet``, and opens either.
MATRIX_FILE = "log_probs.npy"  # [rows, N] float32, the table's ``prior_row`` points into it; [rows, K] of top-K priors
TOP_INDEX_FILE = "top_index.npy"  # [rows, K] int32; there for top-K priors only
TAIL_FILE = "tail_log_mass.npy"  # [rows] float32; likewise
CATALOG_FILE = "catalog.json"  # {"version": …, "advertisers": [{"advertiser_id", "name"}, …]} in index order
# Interests stand beside the priors of a predictor that has them: same rows, same pointer, categories for advertisers.
INTERESTS_FILE = "interests.json"  # as CATALOG_FILE; a category is its own id and name
INTEREST_MATRIX_FILE = "interest_log_probs.npy"  # [rows, C] float32
INTEREST_LOG_PROBS = "interest_log_probs"  # [C] float32: log P(category | history)
INTEREST_TOP_INDEX = "interest_top5_index"  # [5] int64, likeliest first
INTEREST_TOP_LOG_PROBS = "interest_top5_log_probs"  # [5] float32


@dataclass(frozen=True)
class TimePlan:
    """The order in time that keeps answers out of features.

    fine-tune labels end <= ``finetune_end`` = first snapshot <= ranker train < validation < test.

    Parameters
    ----------
    start : datetime
        Start of the data.
    finetune_end : datetime
        End of fine-tuning labels and time of the first snapshot (the *model cutoff*).
    train_end, valid_end, end : datetime
        Ranker rows are train in [finetune_end, train_end), validation in [train_end, valid_end),
        test in [valid_end, end).
    snapshot_every : timedelta
        Distance of snapshots.
    lag : timedelta
        A row for snapshot s is available from s + lag.
    """

    start: datetime
    finetune_end: datetime
    train_end: datetime
    valid_end: datetime
    end: datetime
    snapshot_every: timedelta = timedelta(days=7)
    lag: timedelta = timedelta(hours=1)

    def __post_init__(self) -> None:
        moments = [self.start, self.finetune_end, self.train_end, self.valid_end, self.end]
        if any(m.tzinfo is None for m in moments):
            raise ValueError("a time plan needs times with a zone")
        if sorted(set(moments)) != moments:
            raise ValueError("a time plan needs start < finetune_end < train_end < valid_end < end")
        if self.snapshot_every <= timedelta(0) or self.lag < timedelta(0):
            raise ValueError("snapshot_every must be positive and lag not negative")

    def snapshots(self) -> list[datetime]:
        """Snapshots from ``finetune_end`` on, up to but not including ``end``."""
        return self._every(self.finetune_end)

    def feature_snapshots(self) -> list[datetime]:
        """The same grid extended back to ``start``: aggregates need no model, so they start earlier."""
        back = (self.finetune_end - self.start) // self.snapshot_every
        return self._every(self.finetune_end - back * self.snapshot_every)

    def _every(self, first: datetime) -> list[datetime]:
        count = -((first - self.end) // self.snapshot_every)
        return [first + i * self.snapshot_every for i in range(count)]

    def to_json(self) -> dict[str, str | float]:
        """JSON form, as kept in a manifest."""
        return {
            "start": self.start.isoformat(),
            "finetune_end": self.finetune_end.isoformat(),
            "train_end": self.train_end.isoformat(),
            "valid_end": self.valid_end.isoformat(),
            "end": self.end.isoformat(),
            "snapshot_every_s": self.snapshot_every.total_seconds(),
            "lag_s": self.lag.total_seconds(),
        }

    @classmethod
    def from_json(cls, data: dict[str, str | float]) -> TimePlan:
        """Read what `to_json` wrote."""

        def moment(key: str) -> datetime:
            return datetime.fromisoformat(str(data[key])).astimezone(UTC)

        return cls(
            moment("start"),
            moment("finetune_end"),
            moment("train_end"),
            moment("valid_end"),
            moment("end"),
            timedelta(seconds=float(data["snapshot_every_s"])),
            timedelta(seconds=float(data["lag_s"])),
        )
