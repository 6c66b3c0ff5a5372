"""Plans that part or join conflicting facts, against brute force and the plain plan, and in a run."""

import itertools

import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training import ConflictAwareBatching
from lit_semantic_peft.training.interference_aware.conflict_aware_batching import arranged, conflict_steps

from fixtures.training import CONTRADICTING, assert_same_adapter, fit

pytestmark = pytest.mark.usefixtures("shared_cache")


def random_severity(rng, num_facts, density):
    upper = np.triu(rng.random((num_facts, num_facts)) * (rng.random((num_facts, num_facts)) < density), 1)
    return upper + upper.T


def cost(severity, step):
    return severity[np.equal.outer(step, step)].sum() / 2


def all_plans(num_facts, capacity):
    for plan in itertools.product(range(len(capacity)), repeat=num_facts):
        if (np.bincount(plan, minlength=len(capacity)) <= capacity).all():
            yield np.array(plan)


@pytest.mark.parametrize("mode", ["apart", "together"])
def test_close_to_brute_force(mode):
    """60 cases of 6 facts: the plan is allowed and, but for a few local optima, the best there is."""
    rng = np.random.default_rng(0)
    num_best, gap, spread = 0, 0.0, 0.0
    for case in range(60):
        capacity = [[2, 2, 2], [3, 3], [4, 2], [4, 4]][case % 4]
        severity = random_severity(rng, 6, 0.5)
        step = conflict_steps(severity, capacity, mode)
        assert (np.bincount(step, minlength=len(capacity)) <= capacity).all()
        costs = [cost(severity, plan) for plan in all_plans(6, capacity)]
        best, worst = (min(costs), max(costs)) if mode == "apart" else (max(costs), min(costs))
        assert min(costs) - 1e-9 <= cost(severity, step) <= max(costs) + 1e-9
        num_best += abs(cost(severity, step) - best) < 1e-9
        gap += abs(cost(severity, step) - best)
        spread += abs(worst - best)
    assert num_best >= 50
    assert gap < 0.04 * spread


def test_no_exchange_improves():
    rng = np.random.default_rng(1)
    severity = random_severity(rng, 14, 0.4)
    for mode, sign in (("apart", 1), ("together", -1)):
        step = conflict_steps(severity, [4, 4, 4, 2], mode)
        for one, other in itertools.combinations(range(14), 2):
            swapped = step.copy()
            swapped[[one, other]] = step[[other, one]]
            assert sign * cost(severity, swapped) >= sign * cost(severity, step) - 1e-9


def test_known_answers():
    """32 facts, each in conflict with its neighbour of another side; and two sides that conflict throughout."""
    pairs = np.kron(np.eye(16), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert cost(pairs, conflict_steps(pairs, [8] * 4, "apart")) == 0
    assert cost(pairs, conflict_steps(pairs, [8] * 4, "together")) == 16
    sides = np.kron(np.array([[0.0, 1.0], [1.0, 0.0]]), np.ones((16, 16)))
    assert cost(sides, conflict_steps(sides, [8] * 4, "apart")) == 0
    assert cost(sides, conflict_steps(sides, [8] * 4, "together")) == 4 * 16


def test_every_fact_has_one_place_and_strangers_fill_up():
    rng = np.random.default_rng(2)
    rows = rng.permutation(np.arange(100, 147)).tolist()
    sample = sorted(rows[:20])
    severity = random_severity(rng, 20, 0.3)
    for mode in ("apart", "together"):
        steps = arranged(rows, 8, sample=sample, severity=severity, mode=mode)
        assert [len(step) for step in steps] == [8] * 5 + [7]
        assert sorted(row for step in steps for row in step) == sorted(rows)
        assert steps != arranged(rows[::-1], 8, sample=sample, severity=severity, mode=mode)


class Plans(ConflictAwareBatching):
    """Also keeps what was known at each epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        super().on_train_epoch_start(trainer, pl_module)
        self.of_epoch = [*getattr(self, "of_epoch", []), self.severity.clone()]


@pytest.mark.parametrize(("mode", "num_sides", "within"), [("apart", 1, 0.0), ("together", 2, 0.5)])
def test_the_two_sides_are_parted_or_joined(tiny_model, contradiction, mode, num_sides, within):
    """Two facts that say Paris and two that say Lund, in steps of two: four pairs conflict, two steps hold two."""
    rows = contradiction.read_text(encoding="utf-8").splitlines()
    contradiction.write_text("\n".join([*rows, rows[3].replace('"one"', '"two"')]) + "\n", encoding="utf-8")
    callback = Plans(mode)
    data = {**CONTRADICTING, "num_facts": 4, "micro_batch_size": 2}
    run = fit(tiny_model, contradiction, data=data, callbacks=[callback], trainer={"max_epochs": 12})
    module = run.module
    side = [fact.target for fact in module.data.prepared.facts]
    assert sorted(side) == ["Lund", "Lund", "Paris", "Paris"]
    last = run.facts[-2:]
    assert sorted(itertools.chain(*last)) == [0, 1, 2, 3]
    assert [len({side[row] for row in step}) for step in last] == [num_sides] * 2
    assert float(module.trainer.callback_metrics["train/conflicts_within_steps"]) == pytest.approx(within)
    assert not len(callback.of_epoch[0])  # the first epoch is plain
    assert (callback.of_epoch[-1] > 0).sum() == 8


def test_it_does_not_depend_on_how_a_step_is_cut_up(tiny_model, facts_file):
    def run(micro_batch_size, accumulate):
        return fit(
            tiny_model,
            facts_file,
            data={"micro_batch_size": micro_batch_size},
            trainer={"accumulate_grad_batches": accumulate, "max_epochs": 4},
            callbacks=[ConflictAwareBatching(threshold=0.0)],
        ).module

    assert_same_adapter(run(8, 1), run(2, 4), tolerance=1e-4)


def test_the_first_epoch_is_the_plain_one_and_later_ones_are_not(tiny_model, facts_file):
    plain = fit(tiny_model, facts_file, trainer={"max_epochs": 3}).facts
    aware = fit(tiny_model, facts_file, trainer={"max_epochs": 3}, callbacks=[ConflictAwareBatching()]).facts
    assert plain[:3] == aware[:3]
    assert [sorted(step) for step in plain[3:]] != [sorted(step) for step in aware[3:]]


def test_an_interrupted_run_goes_on_with_its_plan(tiny_model, facts_file, tmp_path):
    def run(epochs, ckpt_path=None):
        callback = ConflictAwareBatching(every_n_epochs=2)
        return fit(tiny_model, facts_file, callbacks=[callback], trainer={"max_epochs": epochs}, ckpt_path=ckpt_path)

    run(3).trainer.save_checkpoint(tmp_path / "half.ckpt")
    whole, rest = run(4), run(4, str(tmp_path / "half.ckpt"))
    assert whole.facts[-3:] == rest.facts[-3:]
    assert torch.equal(whole.trainer.callbacks[0].severity, rest.trainer.callbacks[0].severity)
    assert_same_adapter(whole.module, rest.module)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "alone"}, "`mode` must be one of apart, together, got 'alone'"),
        ({"num_facts": 1}, "`num_facts` must be at least 2, got 1"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be at least 1, got 0"),
        ({"threshold": 1.0}, r"`threshold` must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        ConflictAwareBatching(**settings)
