"""Facts whose gradients agree, found by merging."""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def agreement_clusters(cosine: np.ndarray, min_cosine: float = 0.0) -> np.ndarray:
    """Clusters of facts: average linkage on the gradients' cosines, cut where the mean cosine is `min_cosine`.

    Starting from single facts, the two clusters with the highest mean cosine between their members become one, as long
    as that mean is above `min_cosine`; afterwards any two clusters disagree on average. Source: average linkage (Sokal
    & Michener 1958); that conflicts are to be looked for between such clusters is our reading. Cost: O(k²) time for k
    facts and no pass over the model.

    Args:
        cosine: float `(k, k)`, symmetric, in [−1, 1]; NaN (a gradient that is zero or not finite) counts as 0.
        min_cosine: Where to cut, in [−1, 1].

    Returns:
        int64 `(k,)`, number of each fact's cluster, from 0 in the order of the clusters' first facts.

    Example:
        >>> agreement_clusters(np.array([[1.0, -0.5, 0.8], [-0.5, 1.0, -0.2], [0.8, -0.2, 1.0]])).tolist()
        [0, 1, 0]
    """
    if len(cosine) < 2:
        return np.zeros(len(cosine), dtype=np.int64)
    distance = 1.0 - np.nan_to_num(np.asarray(cosine, dtype=np.float64))
    np.fill_diagonal(distance, 0.0)
    just_below = np.nextafter(1.0 - min_cosine, -np.inf)  # a mean of `min_cosine` itself does not merge
    label = fcluster(linkage(squareform(distance, checks=False), "average"), just_below, "distance")
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    numbers: np.ndarray = np.argsort(np.argsort(first))[inverse]
    return numbers
