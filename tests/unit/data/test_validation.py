"""Which facts are measured after each epoch."""

from dataclasses import replace

import numpy as np
import pytest
from lit_semantic_peft.data import BatchPlan

from fixtures.training import build_data


@pytest.mark.parametrize(("num_kept", "measured_kept"), [(1, 1), (2, 2), (6, 2), (9, 3), (12, 4)])
def test_kept_facts_are_measured_however_few_there_are(tiny_model, facts_file, num_kept, measured_kept):
    """12 facts, 4 measured: at least half of them kept ones, where there are so many."""
    data = build_data(tiny_model, facts_file, max_val_facts=4)
    data.setup("validate")
    for seed in range(5):
        is_kept = np.random.default_rng(seed).permutation(12) < num_kept
        data.preparation = replace(data.preparation, seed=seed)
        data._prepared = replace(data.prepared, is_kept=is_kept)
        rows = [row for batch in data.val_dataloader() for row in batch.fact_index.tolist()]
        assert len(set(rows)) == len(rows) == 4
        assert is_kept[rows].sum() == measured_kept
    data.preparation = replace(data.preparation, batches=BatchPlan(max_val_facts=12))
    assert sorted(row for batch in data.val_dataloader() for row in batch.fact_index.tolist()) == list(range(12))
