"""Attention by blocks of queries: what plain attention says, at any length, and never of a later token."""

from __future__ import annotations

import pytest
import torch

from advprior.predictors.llm.tuning.attention import BLOCKS, block_attention


def tensors(length: int, heads: int = 6, shared: int = 2):
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(2, heads, length, 8, generator=generator)
    key, value = (torch.randn(2, shared, length, 8, generator=generator) for _ in range(2))
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1).expand(2, 1, -1, -1)
    return query, key, value, mask


@pytest.mark.parametrize("length", [1, 2, BLOCKS - 1, BLOCKS, BLOCKS + 1, 50])
@pytest.mark.parametrize("scaling", [None, 0.1])
def test_blocks_say_what_plain_attention_says(length, scaling):
    query, key, value, mask = tensors(length)
    found, _ = block_attention(torch.nn.Identity(), query, key, value, mask, scaling=scaling)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True, scale=scaling
    )
    assert found.shape == (2, length, 6, 8)
    assert _apart(found, expected.transpose(1, 2)) <= 1e-5


def test_the_mask_counts_within_a_block():
    query, key, value, mask = tensors(2 * BLOCKS)
    open_mask = torch.zeros_like(mask)
    masked, _ = block_attention(torch.nn.Identity(), query, key, value, mask)
    seen, _ = block_attention(torch.nn.Identity(), query, key, value, open_mask)
    assert not torch.allclose(masked[:, 0], seen[:, 0]), "the first of a block must not see the second"
    assert _apart(masked[:, 1], seen[:, 1]) <= 1e-5, "the last sees the same keys either way"


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max())
