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
# # Should predicted advertisers get slots among the candidates?
#
# Two towers retrieve; a quota of the slots goes to ads of advertisers that a prior predicts. Runs
# `advprior rank towers`, `rank candidates` and `rank two-by-two` on a finished project (reused when unchanged).

# %% tags=["parameters"]
import os
from pathlib import Path


# %matplotlib inline

workspace = Path(os.environ.get("ADVPRIOR_WORKSPACE", "runs/demo"))
if not workspace.is_absolute() and not workspace.is_dir():
    workspace = Path("..") / workspace  # started from the notebooks' folder

# %%
import subprocess
import sys


def advprior(*words):
    """Run a command as a user would, and show what it says."""
    done = subprocess.run([sys.executable, "-m", "advprior", *map(str, words)], capture_output=True, text=True)
    print(done.stdout)
    if done.returncode:
        raise RuntimeError(done.stderr)


tables, repo, towers = workspace / "tables", workspace / "feature_repo", workspace / "towers"
advprior("rank", "towers", "--tables", tables, "--out", towers)
advprior(
    "rank", "candidates", "--tables", tables, "--repo", repo, "--towers", towers, "--out", workspace / "candidates"
)

# %% [markdown]
# ## Recall and concentration against the quota
#
# The placebo shows what slots bring that say nothing of the user. A hit counts only among ads that the user was shown.

# %%
import ranking

curve = ranking.CandidateCurve.load(workspace / "candidates")
print(curve)
curve.plot()

# %%
test = curve.frame().query("split == 'test'")
test[["predictor", "quota", "recall", "gain", "low", "high", "unique_hits", "lost_hits", "hhi"]].round(4)

# %% [markdown]
# ## End to end: candidates with and without priors, ranked with and without

# %%
folders = ("--frame", workspace / "frame", "--ablation", workspace / "ablation", "--towers", towers)
advprior("rank", "two-by-two", "--tables", tables, *folders, "--out", workspace / "two_by_two")

# %%
cells = ranking.TwoByTwo.load(workspace / "two_by_two")
print(cells)
cells.plot()

# %%
cells.table().round(4)
