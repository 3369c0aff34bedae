"""Words without a network: TF-IDF of character n-grams, as cosines or as vectors. The lexical control.

What encodings of a language model say beyond it is what their pre-training earned. As vectors for whoever takes an
encoder's (``base: lexical``): the leading components of the TF-IDF matrix (Deerwester et al. 1990, "Indexing by latent
semantic analysis"), turned at random. Unturned, components have variances that differ a hundredfold, and who
standardises dimensions, as the text prior does, would make the faintest count as much as the leading one: the control
lost two thirds of its gain by that (docs/experiments, 2026-11-26-text-terms). A turn changes no cosine and makes the
variances alike.

The weights and components are those of the texts it was fitted on: other texts are laid into the same space.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from advprior.store.arrays import Float
from advprior.store.contract import LEXICAL

LEXICAL_VERSION = 1  # of what is made of the same texts
NGRAMS = (3, 5)  # characters, within words
COMPONENTS = 1024
SAMPLE = 2000  # texts that the components are found from: an eigenproblem of their number
SEED = 0


def lexical_cosines(texts: Sequence[str]) -> Float:
    """Cosines [N, N] of TF-IDF over character 3- to 5-grams within words: no network, no vocabulary of a language.

    >>> lexical_cosines(["green tea", "black tea", "rye bread"])[0].round(1).astype(float).round(1).tolist()
    [1.0, 0.2, 0.0]
    """
    weights = lexical_weights(texts)
    result: Float = (weights @ weights.T).toarray().astype(np.float32)
    return result


def lexical_weights(texts: Sequence[str]) -> Any:
    """TF-IDF rows [N, G] at unit length, sparse: their products are `lexical_cosines`."""
    from scipy.sparse import csr_matrix

    vectorizer = _fitted(texts)
    return csr_matrix((len(texts), 1), dtype=np.float32) if vectorizer is None else vectorizer.transform(texts).tocsr()


def lexical_vectors(texts: Sequence[str], fitted_on: Sequence[str] | None = None) -> tuple[Float, dict[str, Any]]:
    """One vector a text [len(texts), H], whose cosines are those of `lexical_cosines`, and what made them.

    Exact to rounding up to `COMPONENTS` texts; of more, what the leading components of `SAMPLE` of them hold.

    Parameters
    ----------
    texts : sequence of str
    fitted_on : sequence of str, optional
        Whose n-grams and components they are: by default their own.
    """
    started = time.process_time()
    reference = texts if fitted_on is None else fitted_on
    vectorizer = _fitted(reference)
    if vectorizer is None:
        vectors: Float = np.zeros((len(texts), 1), np.float32)
    else:
        vectors = _components(vectorizer.transform(texts), vectorizer.transform(_sample(reference)))
    about = {"encoder": LEXICAL, "source": LEXICAL, "kind": LEXICAL, "ngrams": list(NGRAMS)}
    return vectors, about | {"cpu_seconds": round(time.process_time() - started, 2)}


def _components(weights: Any, sample: Any) -> Float:
    """TF-IDF rows [n, G] in the turned space of the leading components of the sample's rows [m, G]."""
    from scipy.linalg import eigh

    last = sample.shape[0] - 1
    size, axes = eigh((sample @ sample.T).toarray(), subset_by_index=(max(last + 1 - COMPONENTS, 0), last))
    some = size > 1e-9 * size[-1]
    axes = axes[:, some] / np.sqrt(size[some])
    turn, _ = np.linalg.qr(np.random.default_rng(SEED).normal(size=(axes.shape[1],) * 2))
    vectors: Float = ((weights @ sample.T) @ (axes @ turn)).astype(np.float32)
    return vectors


def _sample(texts: Sequence[str]) -> Sequence[str]:
    if len(texts) <= SAMPLE:
        return texts
    chosen = np.sort(np.random.default_rng(SEED).choice(len(texts), SAMPLE, replace=False))
    return [texts[i] for i in chosen]


def _fitted(texts: Sequence[str]) -> Any:
    """A TF-IDF vectorizer of these texts; None where they hold no n-gram."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.strip() for text in texts):
        return None
    return TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, sublinear_tf=True).fit(texts)
