"""The oracle of name scoring: each name by a plain causal forward of its own."""

from __future__ import annotations

import numpy as np
import torch

from advprior.predictors.llm.tuning.names import NameModel
from advprior.predictors.logit import log_softmax
from advprior.store.arrays import Float


def naive_scores(model: NameModel, prompt: list[int]) -> Float:
    """Log-likelihood [N] of each name after one prompt, each by a plain causal forward of its own."""
    scores = []
    with torch.inference_mode():
        for name in model.config.names:
            ids = torch.tensor([prompt + name[:-1]])
            states = model.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
            log_probs = torch.log_softmax((states @ model.vocabulary.T).float(), dim=-1)
            scores.append(float(log_probs[torch.arange(len(name)), torch.tensor(name)].sum()))
    return np.asarray(scores, np.float32)


def naive_log_probs(model: NameModel, prompt: list[int]) -> Float:
    """Priors [N] by `naive_scores`."""
    return log_softmax(naive_scores(model, prompt))
