"""One, two and three real processes: one trajectory. All cases of a group size run inside one group."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lit_semantic_peft.callbacks import InterferenceMonitor
from lit_semantic_peft.data import module as data_module
from lit_semantic_peft.facts.forms import Cloze, Question
from lit_semantic_peft.semantics import RandomFilter, SemanticDistanceTerm
from lit_semantic_peft.tokens import IGNORE_INDEX
from lit_semantic_peft.training import ContextTeacher, InputDirections, MaskedTarget, OwnSamples

from fixtures.processes import run_group
from fixtures.training import Ramp, Run, Trajectory, assert_same_trajectory, build_data, fit_ramped

pytestmark = pytest.mark.distributed

# Facts per optimizer step are micro-batch × accumulation × processes: 8 of 12 facts for two (a partial window of 4),
# 6 of 11 for three (a partial window of 5, which leaves one rank a fact less).
STEP_COUNT = {"normalization": "step_count"}
SGD = {"optimizer": partial(torch.optim.SGD, lr=1e-2)}
HELD = {
    "retain": [
        OwnSamples(0.5, batch_size=3, num_samples=7, length=5),
        MaskedTarget(2.0, batch_size=5, top_k=None),
        ContextTeacher(batch_size=1),
        InputDirections(0.8, num_samples=7, length=5),
    ]
}
TOKENS = {"token_weighting": SemanticDistanceTerm()}
ELEVEN = {"num_facts": 11}
CASES = {
    2: {
        "2 × 4×1": {"micro_batch_size": 4},
        "2 × 2×2": {"micro_batch_size": 2, "accumulate": 2},
        "2 × 1×4": {"micro_batch_size": 1, "accumulate": 4},
        "2 × 1×4, step_count": {"micro_batch_size": 1, "accumulate": 4, "model": STEP_COUNT},
        "2 × 4×1, SGD": {"micro_batch_size": 4, "model": SGD},
        "2 × 2×2, checkpointing": {"micro_batch_size": 2, "accumulate": 2, "checkpointing": True},
        "2 × 2×2, monitor": {"micro_batch_size": 2, "accumulate": 2, "monitor": True},
        "2 × 1×4, zeros": {"micro_batch_size": 1, "accumulate": 4, "data": {"weighting": Ramp(7)}},
        "2 × 1×4, three facts come later": {
            "micro_batch_size": 1,
            "accumulate": 4,
            "data": {"filters": [RandomFilter(0.75)], "deferred_from_epoch": 1},
        },
        "2 × 2×2, several forms": {
            "micro_batch_size": 2,
            "accumulate": 2,
            "data": {"sources": [Question(0.4), Cloze(0.3)]},
        },
        "2 × 2×2, held still": {"micro_batch_size": 2, "accumulate": 2, "model": HELD},
        "2 × 1×4, tokens": {
            "micro_batch_size": 1,
            "accumulate": 4,
            "data": {"token_weighting": SemanticDistanceTerm()},
        },
        "2 × 4×1, held still": {"micro_batch_size": 4, "model": HELD},
        "2 × 4×1, a rank without weight": {"micro_batch_size": 4, "empty": "weight"},
        "2 × 4×1, a rank without target": {"micro_batch_size": 4, "empty": "target"},
    },
    3: {
        "3 × 2×1": {"micro_batch_size": 2, "data": ELEVEN},
        "3 × 1×2": {"micro_batch_size": 1, "accumulate": 2, "data": ELEVEN},
        "3 × 1×2, step_count": {"micro_batch_size": 1, "accumulate": 2, "data": ELEVEN, "model": STEP_COUNT},
    },
}
FACTS_IN_A_STEP = {2: 8, 3: 6}


def without_weight(batch):
    return replace(batch, loss_weight=torch.zeros_like(batch.loss_weight))


def without_target(batch):
    return replace(without_weight(batch), labels=torch.full_like(batch.labels, IGNORE_INDEX))


def run_case(
    tiny_model, facts_file, folder, *, world_size=1, monitor=False, checkpointing=False, empty=None, **settings
) -> Run:
    """A run; with `empty`, nothing of what rank 1 (or, in one process, every second fact of a step) sees counts."""
    settings["callbacks"] = [InterferenceMonitor(num_facts=5, every_n_epochs=1)] if monitor else []
    settings["model"] = {"gradient_checkpointing": checkpointing, **settings.get("model", {})}
    settings["trainer"] = {"default_root_dir": folder, "devices": world_size}
    settings["trainer"] |= {"strategy": "ddp"} if world_size > 1 else {}
    dataset = data_module.FactBatches
    if empty is not None:
        change = without_weight if empty == "weight" else without_target

        class Emptied(dataset):
            def __getitem__(self, micro_batch):
                batch = super().__getitem__(micro_batch)
                if not self._with_end:  # of validation, which counts every fact
                    return batch
                if not dist.is_initialized():
                    every_second = torch.arange(len(batch)) % 2 == 1
                    return replace(batch, loss_weight=batch.loss_weight.masked_fill(every_second, 0.0))
                return change(batch) if dist.get_rank() == 1 else batch

        data_module.FactBatches = Emptied
    try:
        return fit_ramped(tiny_model, facts_file, **settings)
    finally:
        data_module.FactBatches = dataset


def work(world_size: int, tiny_model: Path, facts_file: Path, folder: Path) -> None:
    results = {}
    for name, settings in CASES[world_size].items():
        run = run_case(tiny_model, facts_file, str(folder / "run"), world_size=world_size, **settings)
        results[name] = {"losses": run.losses, "norms": run.norms, "adapter": run.adapter}
        results[name]["kept"] = run.data.prepared.kept_index
        results[name]["scores"] = torch.from_numpy(run.data.prepared.scored.distance)
        results[name]["val"] = {key: float(value) for key, value in run.module.trainer.callback_metrics.items()}
    torch.save(results, folder / f"{dist.get_rank()}.pt")


@pytest.fixture(scope="module", params=[2, 3])
def group(request, tiny_model, tmp_path_factory):
    """Number of processes, the facts, and what each rank says of each case."""
    world_size = request.param
    folder = tmp_path_factory.mktemp(f"group{world_size}")
    from fixtures.facts import write_facts

    facts_file = write_facts(folder / "facts.jsonl")
    run_group(work, world_size, folder, world_size, tiny_model, facts_file, folder)
    return world_size, facts_file, [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def test_every_case_is_the_trajectory_of_one_process(group, tiny_model):
    world_size, facts_file, ranks = group
    torch.set_num_threads(1)  # as in the group: the number of threads changes the last bits
    references = {}
    for name, settings in CASES[world_size].items():
        cut = ("micro_batch_size", "accumulate", "checkpointing", "monitor")
        kind = {key: value for key, value in settings.items() if key not in cut}
        key = repr({**kind, "empty": "empty" in kind})
        if key not in references:
            size = FACTS_IN_A_STEP[world_size]
            references[key] = run_case(tiny_model, facts_file, None, micro_batch_size=size, **kind)
        reference = references[key]
        assert len(reference.losses) == 4
        for rank in ranks:
            found = rank[name]
            assert_same_trajectory(reference, Trajectory(found["losses"], found["norms"], found["adapter"]))
            # The same facts are kept, from the same scores to the last bit, whoever scored them.
            assert found["kept"] == reference.data.prepared.kept_index
            assert found["scores"].tolist() == reference.data.prepared.scored.distance.tolist()
            # Validation counts each fact once, though ranks repeat facts to come out even.
            logged = reference.module.trainer.callback_metrics
            assert ("val/stopping_efficacy_teacher_forced" in logged) == ("forms" in name)
            for metric in (one for one in logged if one.startswith("val/")):
                expected = float(logged[metric])
                assert found["val"][metric] == pytest.approx(expected, rel=1e-5), (name, metric)
    # An empty rank changes the run; otherwise the comparison above would prove nothing.
    if world_size == 2:
        assert len(references) == 9
        whole, emptied = references["{'empty': False}"], references["{'empty': True}"]
        assert abs(whole.losses[0] - emptied.losses[0]) > 1e-3


def test_the_ranks_repeat_facts_in_validation(tiny_model, facts_file):
    """What the de-duplication above is about: 12 facts in batches of 5 over 2 ranks."""
    from lit_semantic_peft.data import RankShard

    seen = [
        row
        for rank in range(2)
        for batch in RankShard(range(12), [1] * 12, batch_size=5, world_size=2, rank=rank)
        for row in batch.rows
    ]
    assert sorted(set(seen)) == list(range(12))
    assert len(seen) > 12
    assert build_data(tiny_model, facts_file).batches.eval_batch_size == 64
