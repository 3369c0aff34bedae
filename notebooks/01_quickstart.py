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
# Reads a finished run of `advprior demo`, or of the same commands on your own tables. Open it with
# `jupytext --to ipynb notebooks/01_quickstart.py`; it runs after `make demo`.

# %% tags=["parameters"]
import os
from pathlib import Path

import matplotlib.pyplot as plt

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
import json

import numpy as np
import pandas as pd

published = workspace / "feature_repo" / "data" / "prior_llm"
rows = pd.read_parquet(published / "table.parquet", columns=["user_id", "snapshot", "prior_row", "entropy"])
log_probs = np.load(published / "log_probs.npy", mmap_mode="r")
names = [a["name"] for a in json.loads((published / "catalog.json").read_text())["advertisers"]]

spread = rows.groupby("user_id")["entropy"].agg(np.ptp)
user = rows[rows["user_id"] == spread.idxmax()].sort_values("snapshot")
mine = np.exp(log_probs[user["prior_row"].to_numpy()])
favourites = np.argsort(-mine.max(0))[:6]

# %%
figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
for index in favourites:
    ax.plot(user["snapshot"], mine[:, index], label=names[index][:40])
ax.set(title=f"P(advertiser | history) of user {spread.idxmax()}", ylabel="probability")
ax.legend(fontsize=8, frameon=False)
