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
# # Where do priors hurt?
#
# Reads the predictions and the frame of a finished project. An average of nothing can hide users that win and
# users that lose; before tuning, look at who they are, and at the impressions that the prior moved most in the wrong
# way.

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

import ranking

predictions = ranking.AblationResult.load(workspace / "ablation").predictions()
columns = [
    "impression_id",
    "ad_id",
    "prior_llm_log_prob",
    "prior_llm_rank",
    "history_advertiser_all",
    "activity_occasions_all",
]
frame = ranking.Frame.load(workspace / "frame").rows[columns]
rows = predictions.merge(frame, on="impression_id", validate="one_to_one")


def loss(p, y):
    """Log-loss of each impression, nats."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return -np.where(y == 1, np.log(p), np.log1p(-p))


# above zero: the ranker with priors said worse
rows["harm"] = loss(rows["llm"], rows["label"]) - loss(rows["baseline"], rows["label"])
rows["placebo_harm"] = loss(rows["placebo"], rows["label"]) - loss(rows["baseline"], rows["label"])

# %% [markdown]
# ## Are there users that priors hurt, beyond chance?
#
# Each user's mean change of log-loss, sorted. The placebo's curve shows what is only noise of training.

# %%
users = rows.groupby("user_id", observed=True)[["harm", "placebo_harm"]].mean()
figure, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
for name, colour in (("placebo_harm", "0.6"), ("harm", "#d55e00")):
    ax.plot(np.sort(users[name]), color=colour, label="LLM priors" if name == "harm" else "placebo")
ax.axhline(0, color="0.2", linewidth=0.8)
ax.set(xlabel="users, from most helped to most hurt", ylabel="change of log-loss")
ax.legend(frameon=False)

# %% [markdown]
# ## Where in the prior's own ranking does it go wrong?
#
# By the rank that the prior gave the advertiser: above zero the ranker was misled.

# %%
place = pd.cut(
    rows["prior_llm_rank"], [0, 1, 5, 20, 50, 100, np.inf], labels=["1", "2-5", "6-20", "21-50", "51-100", ">100"]
)
by_rank = rows.groupby(place, observed=True).agg(
    impressions=("harm", "size"),
    rate=("label", "mean"),
    baseline=("baseline", "mean"),
    llm=("llm", "mean"),
    harm=("harm", "mean"),
)
by_rank.round(5)

# %%
bought = np.where(rows["history_advertiser_all"] > 0, "bought before", "never bought")
rows.groupby([bought, place.rename("prior rank")], observed=True)["harm"].agg(["size", "mean"]).round(5)

# %% [markdown]
# ## The impressions that it moved most in the wrong way

# %%
worst = rows.sort_values("harm", ascending=False).head(12)
worst[["user_id", "ad_id", "label", "baseline", "llm", "prior_llm_rank", "history_advertiser_all", "harm"]].round(3)

# %% [markdown]
# ## Do users with few events gain or lose?

# %%
quarter = pd.qcut(
    rows["activity_occasions_all"].rank(method="first"), 4, labels=["fewest events", "few", "many", "most events"]
)
rows.groupby(quarter, observed=True)[["harm", "placebo_harm"]].mean().round(6)
