"""Merging clusters by mean cosine, against the definition carried out step by step."""

import numpy as np
import pytest
from lit_semantic_peft.training.interference_aware.clusters import agreement_clusters


def random_cosines(rng, num_facts):
    gradients = rng.normal(size=(num_facts, 5))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients @ gradients.T


def merged_one_by_one(cosine, min_cosine):
    clusters = [[row] for row in range(len(cosine))]
    while len(clusters) > 1:
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i)]
        mean, i, j = max((cosine[np.ix_(clusters[i], clusters[j])].mean(), i, j) for i, j in pairs)
        if mean <= min_cosine:
            break
        clusters[j] += clusters.pop(i)
    label = np.zeros(len(cosine), dtype=int)
    for number, rows in enumerate(clusters):
        label[rows] = number
    return label


@pytest.mark.parametrize("min_cosine", [-0.2, 0.0, 0.3])
def test_equals_average_linkage(min_cosine):
    rng = np.random.default_rng(0)
    for num_facts in [2, 3, 5, 9, 17, 30] * 5:
        cosine = random_cosines(rng, num_facts)
        expected = merged_one_by_one(cosine, min_cosine)
        mine = agreement_clusters(cosine, min_cosine)
        assert (np.equal.outer(mine, mine) == np.equal.outer(expected, expected)).all()


def test_clusters_disagree_on_average_and_do_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    cosine = random_cosines(rng, 20)
    label = agreement_clusters(cosine)
    for one in range(label.max() + 1):
        for other in range(one):
            assert cosine[np.ix_(label == one, label == other)].mean() <= 0
    order = rng.permutation(20)
    shuffled = agreement_clusters(cosine[np.ix_(order, order)])
    assert (np.equal.outer(shuffled, shuffled) == np.equal.outer(label[order], label[order])).all()


def test_a_fact_without_gradient_is_alone():
    cosine = np.array([[1.0, 0.5, np.nan], [0.5, 1.0, np.nan], [np.nan, np.nan, np.nan]])
    assert agreement_clusters(cosine).tolist() == [0, 0, 1]
    assert agreement_clusters(np.ones((1, 1))).tolist() == [0]
