"""LightGBM's own parameters in an arms file: any of them, but for those that the measurement itself decides.

Names and aliases are LightGBM's own list, so that a parameter of a newer version needs no change here. A parameter that
the ablation owns is refused with the setting that controls it: two places for one thing would let one be ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from ranking.models.lightgbm_library import lightgbm_module

_SEEDS = "the seed of each ranker: --seeds of `rank ablate`, --seed of `rank train`"
_FRAME = "the frame decides what is learned from"
_REPEATABLE = "fixed, so that a run can be repeated"
_PREDICTION = "of prediction alone: the service and the ablation score with all trees"
_ONE_MACHINE = "a ranker is trained on one machine"
_FILE = "names a file that no manifest holds"
_BY_PLACE = "goes by the place of a feature, and each arm has others"

#: Canonical name of a parameter that is not the user's, and what controls it.
OWNED: dict[str, str] = {
    "objective": "set `objective`, of the ranker or of an arm",
    "metric": "follows `objective`",
    "eval_at": "follows `objective`",
    "first_metric_only": "follows `objective`",
    "num_class": "labels are 0 and 1",
    "num_threads": "set `threads`",
    "num_iterations": "set `max_rounds`",
    "early_stopping_round": "set `patience`",
    "monotone_constraints": "set `monotone`, of the ranker or of an arm",
    **dict.fromkeys(
        ("is_unbalance", "scale_pos_weight"),
        "set `negatives_per_positive`: weights of one class move probabilities, and with them the round that is best",
    ),
    "linear_tree": "LightGBM cannot explain linear trees, and the service explains what it serves",
    **dict.fromkeys(
        (
            "seed",
            "data_random_seed",
            "bagging_seed",
            "feature_fraction_seed",
            "drop_seed",
            "extra_seed",
            "objective_seed",
        ),
        _SEEDS,
    ),
    **dict.fromkeys(
        ("deterministic", "force_col_wise", "force_row_wise", "feature_pre_filter", "time_out"), _REPEATABLE
    ),
    **dict.fromkeys(
        (
            "data",
            "valid",
            "label_column",
            "weight_column",
            "group_column",
            "ignore_column",
            "categorical_feature",
            "header",
            "two_round",
            "pre_partition",
            "save_binary",
            "precise_float_parser",
        ),
        _FRAME,
    ),
    **dict.fromkeys(
        (
            "task",
            "config",
            "input_model",
            "output_model",
            "output_result",
            "snapshot_freq",
            "saved_feature_importance_type",
            "convert_model",
            "convert_model_language",
            "verbosity",
            "metric_freq",
            "is_provide_training_metric",
            "refit_decay_rate",
        ),
        "the commands of advprior decide what is read and written",
    ),
    **dict.fromkeys(
        (
            "predict_contrib",
            "predict_leaf_index",
            "predict_raw_score",
            "predict_disable_shape_check",
            "pred_early_stop",
            "pred_early_stop_freq",
            "pred_early_stop_margin",
            "num_iteration_predict",
            "start_iteration_predict",
        ),
        _PREDICTION,
    ),
    **dict.fromkeys(
        ("machines", "machine_list_filename", "num_machines", "local_listen_port", "tree_learner", "top_k"),
        _ONE_MACHINE,
    ),
    **dict.fromkeys(("forcedsplits_filename", "forcedbins_filename", "parser_config_file"), _FILE),
    **dict.fromkeys(
        (
            "feature_contri",
            "max_bin_by_feature",
            "interaction_constraints",
            "cegb_penalty_feature_lazy",
            "cegb_penalty_feature_coupled",
        ),
        _BY_PLACE,
    ),
}


@cache
def canonical_names() -> dict[str, str]:
    """Every name that LightGBM takes, and the one that it goes by: ``{"eta": "learning_rate", …}``."""
    aliases: Mapping[str, list[str]] = lightgbm_module().basic._ConfigAliases._get_all_param_aliases()
    return {name: canonical for canonical, names in aliases.items() for name in (canonical, *names)}


def checked_params(params: Mapping[str, Any], settings: Collection[str]) -> dict[str, Any]:
    """Parameters of LightGBM under the names that it goes by itself.

    Parameters
    ----------
    params : mapping
        As the user wrote them, aliases included.
    settings : collection of str
        Names of the ranker's own settings, which have no place among them.

    Raises
    ------
    ValueError
        For a name that LightGBM does not know, one that is not the user's to set, one given twice, and a value that
        LightGBM refuses.

    Examples
    --------
    >>> checked_params({"reg_alpha": 1.0, "max_depth": 6}, ["num_leaves"])
    {'lambda_l1': 1.0, 'max_depth': 6}
    >>> checked_params({"n_estimators": 100}, [])
    Traceback (most recent call last):
    ValueError: n_estimators: set `max_rounds`
    """
    names = canonical_names()
    result: dict[str, Any] = {}
    problems = []
    for name, value in params.items():
        canonical = names.get(name)
        if canonical is None:
            near = difflib.get_close_matches(name, [*settings, *sorted(set(names.values()))], n=1, cutoff=0.6)
            meant = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{name}: neither a setting of the ranker nor a parameter of LightGBM{meant}")
        elif canonical in OWNED:
            problems.append(f"{name}: {OWNED[canonical]}")
        elif canonical in settings:
            problems.append(f"{name}: set `{canonical}` of the ranker itself")
        elif canonical in result:
            problems.append(f"{name}: {canonical} is given twice")
        else:
            result[canonical] = value
    refusal = "" if problems else _refusal(result)
    if problems or refusal:
        raise ValueError("; ".join(problems) or refusal)
    return result


def bagging(fraction: float, params: Mapping[str, Any]) -> dict[str, Any]:
    """Rows drawn for each tree; GOSS draws its own, and takes no bagging beside it."""
    goss = "goss" in (params.get("data_sample_strategy"), params.get("boosting"))
    return {} if goss else {"bagging_fraction": fraction, "bagging_freq": 1}


def _refusal(params: Mapping[str, Any]) -> str:
    """What LightGBM itself says against values; it is asked with a handful of rows."""
    if not params:
        return ""
    import numpy as np

    wrong = [name for name, value in params.items() if value is None or isinstance(value, Mapping)]
    if wrong:
        return f"{', '.join(wrong)}: a number, a text or a list of them"
    lgb = lightgbm_module()
    silent = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 1, "min_data_in_bin": 1, **bagging(0.8, params)}
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    try:
        data = lgb.Dataset(rows, np.arange(8) % 2, params={**silent, **params})
        lgb.train({"objective": "binary", **silent, **params}, data, 1)
    except (lgb.basic.LightGBMError, TypeError, ValueError) as error:
        return f"LightGBM refuses {', '.join(f'{name}={value}' for name, value in params.items())}: {error}"
    return ""
