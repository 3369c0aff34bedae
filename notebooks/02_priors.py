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
# The priors of a finished project (`make demo`, or `advprior run` on your own tables): one distribution over all
# advertisers, per user and week. A prior that never moves is popularity under another name; one that moves with what
# the user does has read it. At the end a control of your own is fitted and measured in the same way.

# %% tags=["parameters"]
import os
from pathlib import Path

import matplotlib.pyplot as plt

# %matplotlib inline

workspace = Path(os.environ.get("ADVPRIOR_WORKSPACE", "runs/demo"))
if not workspace.is_absolute() and not workspace.is_dir():
    workspace = Path("..") / workspace  # started from the notebooks' folder

# %%
import numpy as np
import pandas as pd

import advprior

names = ("popularity", "neighbours", "llm")
priors = {name: advprior.load_priors(workspace / "priors" / name) for name in names}
llm = priors["llm"]
llm

# %%
llm.frame(top=3).head(6)

# %% [markdown]
# ## How sure is it?
#
# Entropy in nats: log N would be "no idea". Beside it the controls, on the same path.

# %%
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
for name in names:
    entropy = priors[name].rows["entropy"]
    ax.hist(
        entropy, bins=40, histtype="step", linewidth=1.8, label=f"{name}: median {entropy.median():.2f}", density=True
    )
ax.axvline(np.log(len(llm.advertisers)), color="0.5", linestyle="--", linewidth=1, label="no idea (log N)")
ax.set(xlabel="entropy of a prior, nats", ylabel="density")
ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## How far does it move from what everybody believes?
#
# KL divergence of each user's prior from the mean prior of the same week: 0 means that nothing of the user is in it.


# %%
def divergence(prior):
    """KL(prior of a user || mean of the week), nats, one per row."""
    parts = []
    for snapshot in prior.rows["snapshot"].unique():
        logs = prior.of(snapshot=snapshot).array().astype(np.float64)
        mean = np.log(np.exp(logs).mean(axis=0))
        parts.append((np.exp(logs) * (logs - mean)).sum(axis=1))
    return np.concatenate(parts)


pd.DataFrame({name: divergence(priors[name]) for name in names}).describe().round(3)

# %% [markdown]
# ## One user's story
#
# The user whose prior moved most over time. Above: the advertisers that were its favourites at any time. Below: what
# the user bought in the weeks before.

# %%
spread = llm.rows.groupby("user_id")["entropy"].agg(np.ptp)
user = spread.idxmax()
weeks = llm.of(user)
probability = np.exp(weeks.array())
favourites = np.argsort(-probability.max(axis=0))[:6]
events = pd.read_parquet(workspace / "tables" / "events.parquet").dropna(subset=["advertiser_id"])
own = events[events["user_id"] == user]

figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
for place, column in enumerate(favourites):
    advertiser = llm.advertisers.iloc[column]
    (line,) = top.plot(weeks.rows["snapshot"], probability[:, column], label=advertiser["name"][:45])
    bought = own.loc[own["advertiser_id"] == advertiser["advertiser_id"], "timestamp"]
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
ordered = events.sort_values("timestamp")[["user_id", "timestamp", "advertiser_id"]]


def next_ranks(prior):
    """Rank of the next bought advertiser under each prior."""
    index = pd.Index(prior.advertisers["advertiser_id"])
    bought = ordered[ordered["advertiser_id"].isin(index)]
    rows = prior.rows.assign(row=np.arange(len(prior.rows))).sort_values("snapshot")
    joined = pd.merge_asof(
        rows, bought, left_on="snapshot", right_on="timestamp", by="user_id", direction="forward"
    ).dropna(subset=["advertiser_id"])
    logs = prior.array()[joined["row"].to_numpy()]
    own = logs[np.arange(len(logs)), index.get_indexer(joined["advertiser_id"])]
    return (logs > own[:, None]).sum(axis=1) + 1


def summary(ranks):
    recall = {f"Recall@{k}": (ranks <= k).mean() for k in (1, 5, 20)}
    return pd.Series({**recall, "median rank": np.median(ranks)})


pd.DataFrame({name: summary(next_ranks(priors[name])) for name in names}).T.round(3)

# %% [markdown]
# ## A control of your own
#
# Fitted on the events before the first snapshot alone, then asked at one snapshot beside the LLM: *who bought last,
# buys again*. `advprior.fit` takes frames; the folder that it writes is a run like any other.

# %%
from tempfile import mkdtemp

tables = {"events": events, "advertisers": pd.read_parquet(workspace / "tables" / "advertisers.parquet")}
first, late = llm.rows["snapshot"].min(), llm.rows["snapshot"].max() - pd.Timedelta(weeks=4)
last_bought = advprior.fit("neighbours", tables, first, mkdtemp() + "/last", {"half_lives_days": [3], "similar": False})
scores = advprior.score_users(last_bought, events, late, top=None)

# %%
following = ordered[ordered["timestamp"] >= late].drop_duplicates("user_id")  # the next purchase of each user
ranks = {"last bought": scores.merge(following, on=["user_id", "advertiser_id"])["rank"]}
for name in names:
    frame = priors[name].of(snapshot=late).frame(top=None)
    ranks[name] = frame.merge(following, on=["user_id", "advertiser_id"])["rank"]
pd.DataFrame({name: summary(r) for name, r in ranks.items()}).T.round(3)
