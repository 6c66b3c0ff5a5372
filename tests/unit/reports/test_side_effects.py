"""What moved beside what was taught: against cells by hand, and by chance."""

import numpy as np
import pytest
from lit_semantic_peft.reports.answers import side_effect_view
from lit_semantic_peft.reports.run_folder import RunFolder
from lit_semantic_peft.reports.side_effects import TAUGHT, UNTAUGHT, measure_side_effects
from lit_semantic_peft.reports.tables import write_fact_table, write_probe_table

SIZE = 24


@pytest.fixture
def tables(tmp_path):
    """Three relations of 24 facts: `taught`, with neighbours; `moved` and `still`, of which nothing was taught."""
    rng = np.random.default_rng(0)
    relation = [name for name in ("taught", "moved", "still") for _ in range(SIZE)]
    noise = rng.normal(0, 0.5, 3 * SIZE)
    shift = np.repeat([-3.0, 1.0, 0.0], SIZE)
    folder = RunFolder(tmp_path)
    write_fact_table(
        folder.paths.facts,
        {
            "fact_id": [str(row) for row in range(3 * SIZE)],
            "relation": relation,
            "prompt": ["p"] * 3 * SIZE,
            "target": ["t"] * 3 * SIZE,
            "split": ["inject"] * 2 * SIZE + ["probe"] * SIZE,
            "kept": [True] * SIZE + [False] * 2 * SIZE,
            "nll_before": np.full(3 * SIZE, 4.0),
            "nll_after": 4.0 + shift + noise,
        },
    )
    # Two neighbours a fact, moved by 1 and 3; those beside a fact that was not taught say nothing of what it did.
    write_probe_table(
        folder.paths.probes,
        {
            "fact_id": [str(row) for row in range(2 * SIZE) for _ in range(2)],
            "kind": ["neighborhood"] * 4 * SIZE,
            "prompt": [f"n{row}" for row in range(4 * SIZE)],
            "nll_before": [2.0] * 4 * SIZE,
            "nll_after": [3.0, 5.0] * 2 * SIZE,
        },
    )
    return folder.facts, folder.probes, shift + noise


def test_cells_are_means_over_facts(tables):
    facts, probes, delta = tables
    effects = measure_side_effects(facts, probes)
    assert effects.relations == ("taught", "moved", "still")
    assert effects.taught == {"taught"}
    assert set(effects.cells) == {
        ("taught", TAUGHT), ("taught", "neighbours"), ("moved", UNTAUGHT), ("still", UNTAUGHT)
    }  # fmt: skip
    assert effects.cells["moved", UNTAUGHT].nll_delta == pytest.approx(delta[SIZE : 2 * SIZE].mean())
    near = effects.cells["taught", "neighbours"]
    assert (near.nll_delta, near.num_facts) == (2.0, SIZE)


def test_what_exceeds_chance_is_noted_and_what_was_taught_is_not(tables):
    facts, probes, _ = tables
    effects = measure_side_effects(facts, probes)
    assert [(cell.relation, cell.evaluated) for cell in effects.beyond_chance] == [
        ("taught", "neighbours"), ("moved", UNTAUGHT)
    ]  # fmt: skip
    assert effects.cells["taught", TAUGHT].p_value < 0.01
    assert not effects.cells["taught", TAUGHT].exceeds_chance  # it was meant to move
    view = side_effect_view(effects)
    assert view["note"].startswith("2 side effects exceed chance; the largest: neighbours of “taught”, +2.00")
    assert view["columns"] == [TAUGHT, "neighbours", UNTAUGHT]


def test_few_facts_and_facts_that_did_not_move_show_nothing(tables):
    facts, _, _ = tables
    few = measure_side_effects(facts.slice(SIZE, 4))  # 4 facts: no sign pattern is rarer than 1 in 8
    assert few.cells["moved", UNTAUGHT].p_value >= 0.125
    assert few.beyond_chance == []
    still = facts.set_column(facts.column_names.index("nll_after"), "nll_after", facts.column("nll_before"))
    assert {cell.p_value for cell in measure_side_effects(still).cells.values()} == {1.0}
    assert side_effect_view(measure_side_effects(facts.drop_columns(["nll_after"]).append_column(
        "nll_after", [[None] * len(facts)]
    ))) is None  # fmt: skip


def test_noise_alone_rarely_exceeds_chance(tables):
    facts, _, _ = tables
    place = facts.column_names.index("nll_after")
    alarms = 0
    for seed in range(20):
        after = 4.0 + np.random.default_rng(seed).normal(0, 1, len(facts))
        alarms += bool(measure_side_effects(facts.set_column(place, "nll_after", [after])).beyond_chance)
    assert alarms <= 3


def test_a_dropped_fact_that_came_back_was_taught(tables):
    facts, probes, _ = tables
    late = [None] * SIZE + [2] * SIZE + [None] * SIZE  # `moved`
    table = facts.set_column(facts.schema.get_field_index("trained_from_epoch"), "trained_from_epoch", [late])
    effects = measure_side_effects(table, probes)
    assert {cell for cell in effects.cells if cell[0] == "moved"} == {("moved", TAUGHT), ("moved", "neighbours")}
