# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does the LLM believe, and when does it change its mind?
#
# Reads the priors that a finished `advprior demo` published: one distribution over all advertisers, per user and week.
# A prior that never moves is popularity under another name; one that moves with what the user does has read it.

# %% tags=["parameters"]
import os
from pathlib import Path

import matplotlib.pyplot as plt

# %matplotlib inline

workspace = Path(os.environ.get("ADVPRIOR_WORKSPACE", "runs/demo"))
if not workspace.is_absolute() and not workspace.is_dir():
    workspace = Path("..") / workspace  # started from the notebooks' folder

# %%
import json

import numpy as np
import pandas as pd

views = workspace / "feature_repo" / "data"


def priors(predictor):
    """Rows, log-probabilities and names of a published prior."""
    folder = views / f"prior_{predictor}"
    columns = ["user_id", "snapshot", "prior_row", "entropy"]
    rows = pd.read_parquet(folder / "table.parquet", columns=columns).sort_values(["user_id", "snapshot"])
    catalog = json.loads((folder / "catalog.json").read_text())["advertisers"]
    return rows.reset_index(drop=True), np.load(folder / "log_probs.npy", mmap_mode="r"), pd.DataFrame(catalog)


rows, log_probs, catalog = priors("llm")
print(
    f"{len(rows):,} priors: {rows.user_id.nunique()} users x {rows.snapshot.nunique()} weeks,",
    f"{len(catalog)} advertisers",
)

# %% [markdown]
# ## How sure is it?
#
# Entropy in nats: log N would be "no idea". Beside it the controls, on the same path.

# %%
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
for name in ("popularity", "neighbours", "llm"):
    entropy = priors(name)[0]["entropy"]
    ax.hist(
        entropy, bins=40, histtype="step", linewidth=1.8, label=f"{name}: median {entropy.median():.2f}", density=True
    )
ax.axvline(np.log(len(catalog)), color="0.5", linestyle="--", linewidth=1, label="no idea (log N)")
ax.set(xlabel="entropy of a prior, nats", ylabel="density")
ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## How far does it move from what everybody believes?
#
# KL divergence of each user's prior from the mean prior of the same week: 0 means that nothing of the user is in it.


# %%
def divergence(predictor):
    """KL(prior of a user || mean of the week), nats, one per row."""
    rows, log_probs, _ = priors(predictor)
    found = np.empty(len(rows))
    for index in rows.groupby("snapshot").groups.values():
        logs = np.asarray(log_probs[rows.loc[index, "prior_row"].to_numpy()], dtype=np.float64)
        mean = np.log(np.exp(logs).mean(axis=0))
        found[index] = (np.exp(logs) * (logs - mean)).sum(axis=1)
    return found


pd.DataFrame({name: divergence(name) for name in ("popularity", "neighbours", "llm", "placebo")}).describe().round(3)

# %% [markdown]
# ## One user's story
#
# The user whose prior moved most over time. Above: the advertisers that were its favourites at any time. Below: what
# the user bought in the weeks before.

# %%
spread = rows.groupby("user_id")["entropy"].agg(np.ptp)
user = spread.idxmax()
mine = rows[rows["user_id"] == user]
probability = np.exp(log_probs[mine["prior_row"].to_numpy()])
favourites = np.argsort(-probability.max(axis=0))[:6]
events = pd.read_parquet(workspace / "tables" / "events.parquet", filters=[("user_id", "==", user)])

figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
for place, index in enumerate(favourites):
    advertiser = catalog.loc[index, "advertiser_id"]
    (line,) = top.plot(mine["snapshot"], probability[:, index], label=catalog.loc[index, "name"][:45])
    bought = events.loc[events["advertiser_id"] == advertiser, "timestamp"]
    bottom.plot(bought, np.full(len(bought), -place), "|", color=line.get_color(), markersize=12)
top.set(ylabel="P(advertiser | history)", title=f"User {user}")
top.legend(fontsize=7, frameon=False)
bottom.set(ylabel="purchases", yticks=[])

# %% [markdown]
# ## Does it know what comes next?
#
# For each prior, the rank of the next advertiser that the user bought from: the lower, the better. A control that does
# as well says that the LLM is not needed for this.

# %%
all_events = pd.read_parquet(workspace / "tables" / "events.parquet", columns=["user_id", "timestamp", "advertiser_id"])
all_events = all_events.dropna().sort_values("timestamp")


def next_ranks(predictor):
    """Rank of the next bought advertiser under each prior."""
    rows, log_probs, catalog = priors(predictor)
    index = pd.Index(catalog["advertiser_id"])
    known = all_events[all_events["advertiser_id"].isin(index)]
    joined = pd.merge_asof(
        rows.sort_values("snapshot"), known, left_on="snapshot", right_on="timestamp", by="user_id", direction="forward"
    ).dropna(subset=["advertiser_id"])
    logs = np.asarray(log_probs[joined["prior_row"].to_numpy()])
    own = logs[np.arange(len(logs)), index.get_indexer(joined["advertiser_id"])]
    return (logs > own[:, None]).sum(axis=1) + 1


ranks = {name: next_ranks(name) for name in ("popularity", "neighbours", "llm", "placebo")}
pd.DataFrame(
    {
        name: {
            "Recall@1": (r <= 1).mean(),
            "Recall@5": (r <= 5).mean(),
            "Recall@20": (r <= 20).mean(),
            "median rank": np.median(r),
        }
        for name, r in ranks.items()
    }
).T.round(3)
