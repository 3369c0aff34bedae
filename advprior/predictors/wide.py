"""What a fit does with a catalog so wide that a softmax over all of it is most of the work; free of torch.

Up to 10,000 advertisers every point's softmax is over all of them. Beyond that ``auto`` draws a sample for each batch
while it learns: on a CPU a full pass over 100,000 advertisers costs some twenty times as much. What validates, chooses
and is scored is always over the whole catalog.
"""

from __future__ import annotations

from typing import Literal

Softmax = Literal["auto", "full", "blockwise", "sampled"]
FULL_UP_TO = 10_000  # advertisers that ``auto`` takes all of
SAMPLED = 2048  # advertisers that are drawn for a batch, on average


def softmax_of(setting: Softmax, size: int) -> Softmax:
    """What is meant by ``auto`` for a catalog of ``size``.

    >>> softmax_of("auto", 10_000), softmax_of("auto", 10_001), softmax_of("blockwise", 5)
    ('full', 'sampled', 'blockwise')
    """
    return setting if setting != "auto" else "full" if size <= FULL_UP_TO else "sampled"
