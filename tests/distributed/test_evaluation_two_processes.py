"""Two processes that evaluate one adapter give the scores of one process."""

import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.reports import RunFolder

from fixtures.processes import run_commands

pytestmark = pytest.mark.distributed

_RATIOS = [score for score in SCORES if score.name not in ("efficacy_probability", "locality_kl")]


def test_two_processes_give_the_scores_of_one(tiny_model, facts_file):
    settings = [
        f"--model.base_model={tiny_model}",
        f"--data.facts={facts_file}",
        "--data.num_facts=11",  # leaves the ranks unequal work
        "--data.evaluation.probes=[paraphrase, question, reversed, choice, neighborhood, portability]",
        "--data.evaluation.doubt_turns=2",
        "--data.batches.eval_batch_size=4",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    one_process = ["--trainer.devices=1", "--trainer.strategy=auto"]
    gate = ["--model.gate=lit_semantic_peft.adapters.SubjectGate"]
    learning = [*gate, "--trainer.max_epochs=6", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=2e-2"]
    fit = [*settings, *one_process, *learning, "--trainer.default_root_dir=runs/fit", "--interference.num_facts=0"]
    assert main(["fit", *fit]) == 0
    adapter = ["--model.adapter=runs/fit/adapter"]
    assert main(["test", *settings, *one_process, *adapter, "--trainer.default_root_dir=runs/one"]) == 0
    two_processes = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    run_commands(2, ["test", *settings, *two_processes, *adapter, "--trainer.default_root_dir=runs/two"])

    one, two = RunFolder("runs/one"), RunFolder("runs/two")
    left, right = one.facts.to_pylist(), two.facts.to_pylist()
    for score in _RATIOS:
        columns = [column for column in (score.before, score.after) if column is not None]
        for column in columns:
            assert [row[column] for row in left] == [row[column] for row in right], column
    measured = {score.name for score in _RATIOS if any(row[score.after] is not None for row in left)}
    assert measured >= {"efficacy", "generalization", "generalization_choice", "locality", "robustness_plain"}
    assert any(row["efficacy_after"] != row["efficacy_before"] or row["locality"] < 1 for row in left)
    for column in ("nll_after", "locality_kl", "efficacy_probability_after"):
        assert [row[column] for row in left] == pytest.approx([row[column] for row in right], rel=1e-4, abs=1e-6)

    summaries = [folder.summary for folder in (one, two)]
    gates = [summary.gate for summary in summaries]
    assert gates[0].num_opened == gates[1].num_opened
    assert gates[0].num_asked == gates[1].num_asked
    for gate in gates:  # nothing that names no taught subject has moved, in either
        assert gate.retention.nll_delta.mean == gate.retention.nll_delta.high == 0
        assert gate.score("locality").kept.after.mean == 1
    by_name = [{record.name: record for record in summary.scores} for summary in summaries]
    for name in measured:
        assert by_name[0][name] == by_name[1][name]
    assert summaries[0].retention.known == summaries[1].retention.known
    assert summaries[0].retention.nll_after == pytest.approx(summaries[1].retention.nll_after, rel=1e-5)
