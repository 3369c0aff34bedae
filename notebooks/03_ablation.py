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
# # Would a feature of mine pay, and could I have seen it?
#
# Adds a feature to the frame of a finished project, trains a ranker with it, and compares that with the arms that were
# measured on the same rows. Put your own in its place: one value an impression, known *before* it.

# %% tags=["parameters"]
import os
from pathlib import Path

import matplotlib.pyplot as plt

# %matplotlib inline

workspace = Path(os.environ.get("ADVPRIOR_WORKSPACE", "runs/demo"))
if not workspace.is_absolute() and not workspace.is_dir():
    workspace = Path("..") / workspace  # started from the notebooks' folder

# %%
import ranking

frame = ranking.Frame.load(workspace / "frame")
finished = ranking.AblationResult.load(workspace / "ablation")

weekend = frame.rows["timestamp"].dt.dayofweek >= 5
mine = frame.with_prior("weekend", weekend.astype("float32"))  # a new frame: the old one stays as it was
arms = finished.arms.with_arm("weekend", ["prior_weekend"], label="+ weekend")
result = ranking.ablate(mine, arms, seeds=finished.about["settings"]["seeds"], reuse=finished)
print(result.compare("weekend", "baseline"))

# %% [markdown]
# Only the new arm was trained: the others' scores are taken over, after a check that they are of the same rows.
# `result.save(folder)` writes a run that `advprior rank report` takes.

# %%
print(result)
result.plot()

# %% [markdown]
# ## Other settings, another split
#
# `arms.with_ranker(num_leaves=63)` changes LightGBM for every arm, `frame.with_split(train_end, valid_end)` the rows.
# Then nothing can be reused; few arms keep it short.

# %%
few = ranking.load_arms().only("neighbours").with_arm("weekend", ["prior_weekend"]).with_ranker(num_leaves=15)
print(ranking.ablate(mine, few, seeds=1, replicates=200).compare("weekend", "neighbours"))

# %% [markdown]
# ## Every lift of AUC over the baseline: alone, among all arms, and the smallest that would have shown

# %%
lifts = result.frame()
auc = lifts[(lifts["metric"] == "auc") & (lifts["baseline"] == result.arms.baseline.name)]
columns = [
    "arm",
    "segment",
    "difference",
    "low",
    "high",
    "p",
    "p_adjusted",
    "adjusted_low",
    "adjusted_high",
    "detectable",
]
auc[columns].round(4)

# %% [markdown]
# ## Measured against detectable
#
# A bar that stays inside the grey band could not have been told from zero with this data.

# %%
treatment = auc[auc["arm"] == result.arms.of_role("treatment")[0].name]
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
place = range(len(treatment))
ax.barh(place, 2 * treatment["detectable"], left=-treatment["detectable"], color="0.9", label="not detectable")
ax.errorbar(
    treatment["difference"],
    place,
    xerr=[treatment["difference"] - treatment["low"], treatment["high"] - treatment["difference"]],
    fmt="o",
    color="#d55e00",
    label="measured",
)
ax.axvline(0, color="0.2", linewidth=0.8)
ax.set_yticks(place, treatment["segment"])
ax.set_xlabel("change in AUC")
ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## Is training luck larger than the lift?
#
# Each dot is one ranker's test AUC. Arms whose dots mix are not told apart by one seed.

# %%
each = result.measured.query("split == 'test' and segment == 'overall' and metric == 'auc'")
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
for place, arm in enumerate(a.name for a in result.arms.arms):
    values = each.loc[each["arm"] == arm, "value"]
    ax.plot(values, [place] * len(values), "o", alpha=0.7)
ax.set_yticks(range(len(result.arms.arms)), [arm.name for arm in result.arms.arms])
ax.set_xlabel("AUC on test rows")

# %% [markdown]
# ## What is it worth? Conversions at an ad load, and how few advertisers they go to

# %%
result.value(load=5).round(4)
