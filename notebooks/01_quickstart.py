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
# # Do advertiser priors change my ranker?
#
# On a finished project: `make demo`, or `advprior run` on your own tables. The answer first, then what the model
# believes of one user, then a question of your own to it. Open it with
# `jupytext --to ipynb notebooks/01_quickstart.py`.

# %% tags=["parameters"]
import os
from pathlib import Path

# %matplotlib inline

workspace = Path(os.environ.get("ADVPRIOR_WORKSPACE", "runs/demo"))
if not workspace.is_absolute() and not workspace.is_dir():
    workspace = Path("..") / workspace  # started from the notebooks' folder

# %% [markdown]
# ## The answer

# %%
from ranking.evidence.result import AblationResult

result = AblationResult.load(workspace / "ablation")
result

# %%
print(result.verdict.sentence)
result.plot()

# %% [markdown]
# ## Every arm on the same test rows, and the lifts with their intervals

# %%
result.table().round(4)

# %%
lifts = result.frame()
columns = ["arm", "baseline", "metric", "segment", "difference", "low", "high"]
lifts.loc[lifts["metric"] == "auc", columns].round(4)

# %% [markdown]
# ## What does the LLM believe? One user's prior over the snapshots
#
# The user whose prior moved most; the advertisers that were its favourites at any snapshot.

# %%
import numpy as np
import pandas as pd

import advprior

priors = advprior.load_priors(workspace / "priors" / "llm")
priors

# %%
spread = priors.rows.groupby("user_id")["entropy"].agg(np.ptp)
user = spread.idxmax()
weeks = priors.of(user)
weeks.frame(top=3).head(9)

# %%
probability = pd.DataFrame(np.exp(weeks.array()), index=weeks.rows["snapshot"], columns=priors.advertisers["name"])
favourites = probability.loc[:, (probability.max().rank(ascending=False) <= 6).to_numpy()]
ax = favourites.rename(columns=lambda name: name[:40]).plot(figsize=(9, 4), title=f"P(advertiser | history) of {user}")
ax.set(ylabel="probability", xlabel="")
ax.legend(fontsize=8, frameon=False)

# %% [markdown]
# ## Ask it yourself
#
# The same model on a frame of events, for a user who does not exist: first without any purchase, then with three from
# one advertiser in the week before. Which advertisers gain, beside that one, is what the model takes to go with it.

# %%
events = pd.read_parquet(workspace / "tables" / "events.parquet")
snapshot = weeks.rows["snapshot"].iloc[-1]
llm = advprior.load_predictor(workspace / "models" / "llm")
me = pd.DataFrame({"user_id": ["me"]})
nobody = advprior.score_users(llm, events, snapshot, users=["me"], profiles=me, top=None)

chosen = nobody.iloc[20]  # neither the most popular advertiser nor an obscure one
purchases = pd.DataFrame(
    {
        "user_id": "me",
        "timestamp": [snapshot - pd.Timedelta(days=days) for days in (6, 4, 1)],
        "advertiser_id": chosen["advertiser_id"],
    }
)
somebody = advprior.score_users(llm, pd.concat([events, purchases]), snapshot, users=["me"], top=None)

# %%
print("three purchases from", chosen["advertiser"])
both = nobody.merge(somebody, on=["advertiser_id", "advertiser"], suffixes=("_before", "_after"))
both["times"] = np.exp(both["log_prob_after"] - both["log_prob_before"])
both[["advertiser", "rank_before", "rank_after", "times"]].sort_values("times", ascending=False).head(8).round(2)
