"""Advertisers' names as one token trie: names that begin alike share their beginning, so all are scored in one forward.

A name is its tokens and then the end marker, so that a name which is the start of another has a likelihood of its
own: ``P("Tea") = P(Tea)·P(end | Tea)`` beside ``P("Tea house") = P(Tea)·P(house | Tea)·P(end | Tea house)``.
Numbers only, no torch: what scores can read it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int

NODES = 4096  # of one trie: a mask of 16 million cells
END = ","  # how a prompt that writes names ends each of them


@dataclass(frozen=True)
class NameTrie:
    """M nodes that something follows, and E edges (a token after a node) whose log-probs add up to the names'.

    Node ``m`` is column ``prompt + m`` of the forward. Ends of names need no node: nothing is asked after them.

    Attributes
    ----------
    tokens : int64 [M]
        Token of each node; a parent comes before its children.
    depths : int64 [M]
        0 for the first token of a name.
    ancestors : bool [M, M]
        ``[m, k]``: node m may see node k (itself and what leads to it).
    edge_parents : int64 [E]
        0: the end of the prompt; ``m + 1``: node m.
    edge_tokens : int64 [E]
    paths : int64 [N, L]
        Edges of each name, padded with E (an edge of log-prob 0).
    """

    tokens: Int
    depths: Int
    ancestors: npt.NDArray[np.bool_]
    edge_parents: Int
    edge_tokens: Int
    paths: Int

    @classmethod
    def build(cls, names: Sequence[Sequence[int]]) -> NameTrie:
        """The trie of token sequences, each with its end marker.

        >>> trie = NameTrie.build([[5, 1], [5, 6, 1], [7, 1]])
        >>> trie.tokens.tolist(), trie.depths.tolist(), trie.edge_parents.tolist(), trie.edge_tokens.tolist()
        ([5, 6, 7], [0, 1, 0], [0, 1, 1, 2, 0, 3], [5, 1, 6, 1, 7, 1])
        >>> trie.paths.tolist()
        [[0, 1, 6], [0, 2, 3], [4, 5, 6]]
        """
        if not names or not all(names):
            raise ValueError("a trie needs at least one name, and every name a token")
        inner = {tuple(name[:end]) for name in names for end in range(1, len(name))}
        edges: dict[tuple[int, ...], int] = {}
        nodes: dict[tuple[int, ...], int] = {}
        for name in names:
            for end in range(1, len(name) + 1):
                prefix = tuple(name[:end])
                edges.setdefault(prefix, len(edges))
                if prefix in inner:
                    nodes.setdefault(prefix, len(nodes))
        ancestors = np.zeros((len(nodes), len(nodes)), np.bool_)
        for prefix, node in nodes.items():
            ancestors[node, [nodes[prefix[:end]] for end in range(1, len(prefix) + 1)]] = True
        paths = np.full((len(names), max(map(len, names))), len(edges), np.int64)
        for row, name in enumerate(names):
            paths[row, : len(name)] = [edges[tuple(name[:end])] for end in range(1, len(name) + 1)]
        return cls(
            np.asarray([prefix[-1] for prefix in nodes], np.int64),
            np.asarray([len(prefix) - 1 for prefix in nodes], np.int64),
            ancestors,
            np.asarray([nodes[prefix[:-1]] + 1 if len(prefix) > 1 else 0 for prefix in edges], np.int64),
            np.asarray([prefix[-1] for prefix in edges], np.int64),
            paths,
        )


def name_blocks(names: Sequence[Sequence[int]]) -> list[Int]:
    """Names [N] in blocks whose tries have about `NODES` nodes at most: one for a catalog that is not wide.

    The mask of a trie has a cell for every two of its nodes. Names that begin alike stay together.

    >>> name_blocks([[5, 1], [5, 6, 1]])[0].tolist()
    [0, 1]
    """
    inner = {tuple(name[:end]) for name in names for end in range(1, len(name))}
    if len(inner) <= NODES:
        return [np.arange(len(names), dtype=np.int64)]
    order = sorted(range(len(names)), key=lambda i: tuple(names[i]))
    blocks, nodes, start = [], set[tuple[int, ...]](), 0
    for place, i in enumerate(order):
        more = {tuple(names[i][:end]) for end in range(1, len(names[i]))}
        if place > start and len(nodes | more) > NODES:
            blocks.append(np.asarray(order[start:place], np.int64))
            nodes, start = set(), place
        nodes |= more
    return [*blocks, np.asarray(order[start:], np.int64)]


def widest_trie(names: Sequence[Sequence[int]]) -> int:
    """Nodes of the largest block's trie: what lies behind a prompt in one forward."""
    return max(len(NameTrie.build([names[i] for i in block]).tokens) for block in name_blocks(names))


def name_tokens(names: Sequence[str], encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Tokens of each name as a prompt writes it: a space, the name, then the end marker as a token of its own."""
    end = encode(END)[-1]
    return [[*encode(" " + name), end] for name in names]
