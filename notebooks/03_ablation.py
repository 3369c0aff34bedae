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
# # Which arm wins, by how much, and could we have seen it?
#
# Reads the ablation of a finished `advprior demo`. A lift is a paired difference on the same rows; its interval
# resamples users and holds the noise of training. Below a detectable lift, "no clear effect" is silence, not proof.

# %% tags=["parameters"]
import os
from pathlib import Path

import matplotlib.pyplot as plt

# %matplotlib inline

workspace = Path(os.environ.get("ADVPRIOR_WORKSPACE", "runs/demo"))
if not workspace.is_absolute() and not workspace.is_dir():
    workspace = Path("..") / workspace  # started from the notebooks' folder

# %%
from ranking.evidence.result import AblationResult

result = AblationResult.load(workspace / "ablation")
print(result.verdict.sentence)
result.plot()

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
# ## Found against findable
#
# A bar that stays inside the grey band could not have been told from zero with this data.

# %%
treatment = auc[auc["arm"] == result.arms.of_role("treatment")[0].name]
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
place = range(len(treatment))
ax.barh(place, 2 * treatment["detectable"], left=-treatment["detectable"], color="0.9", label="not findable")
ax.errorbar(
    treatment["difference"],
    place,
    xerr=[treatment["difference"] - treatment["low"], treatment["high"] - treatment["difference"]],
    fmt="o",
    color="#d55e00",
    label="found",
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
