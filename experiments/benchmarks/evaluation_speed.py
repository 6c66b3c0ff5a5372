"""How long the evaluation takes: efficacy, generalization and locality; robustness; retention; free generation.

Each part runs padded and by prefix trees, in turn. Base model and adapter are both asked, nothing comes from the cache,
and the adapter is moved at random so that the two give different answers. Each fact has three paraphrases and two
neighbours.

Free generation is timed against one prompt at a time, in float32: the base model's and the adapter's answers must be
the same, else the script refuses to compare. Not timed: loading the model, tokenizing the questions.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from experiments.benchmarks.measured import keep, peak_memory_gb, rotated, spread
from experiments.benchmarks.subject import with_moved_lora
from lit_semantic_peft.evaluation import Comparison, Evaluation, EvaluationPlan, Evaluator, Question
from lit_semantic_peft.evaluation.neutral_text import NEUTRAL_TEXTS
from lit_semantic_peft.evaluation.questions import doubt_questions, fact_questions, retention_questions
from lit_semantic_peft.facts import Fact, builtin_facts
from lit_semantic_peft.models import BaseModel, greedy_answers
from lit_semantic_peft.semantics import ExpectedEmbeddingDistance, Surprisal
from lit_semantic_peft.tokens import FactEncoder
from peft import PeftModel
from rich.console import Console
from rich.table import Table

NUM_PARAPHRASES, NUM_NEIGHBORS, NUM_KNOWN = 3, 2, 64


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Times each part by prefix trees and padded, in turn.

    Raises:
        SystemExit: If batched and single generation do not give the same answers.
    """
    base = BaseModel(options["base_model"])
    encoder = FactEncoder(base.load_tokenizer())
    torch.manual_seed(0)
    model = with_moved_lora(base.load())
    facts = _with_probes(builtin_facts("world", options["num_facts"]))
    distances, joiners = [ExpectedEmbeddingDistance(), Surprisal()], [fact.joiner for fact in facts]
    evaluators = {
        way: Evaluator(encoder, distances, options["doubt_turns"], joiners, has_trees=way == "trees")
        for way in ("padded", "trees")
    }
    asked = fact_questions(facts, encoder, EvaluationPlan(probes=["paraphrase", "neighborhood"]))
    generation = _against_one_by_one(model, encoder, asked[: options["generation_prompts"]])
    doubted = doubt_questions(
        facts, range(min(options["doubt_facts"], len(facts))), encoder, options["doubt_turns"], len(asked)
    )
    first_free = len(asked) + len(doubted) * (options["doubt_turns"] + 1)
    kept_apart = retention_questions(NEUTRAL_TEXTS, builtin_facts("world")[:NUM_KNOWN], encoder, first_free)
    parts = {
        "efficacy, generalization, locality": asked,
        f"robustness ({options['doubt_turns']} turns)": doubted,
        "retention": kept_apart,
    }
    rows, comparisons = [], []
    for name, questions in parts.items():
        spent: dict[str, list[dict[str, float]]] = {way: [] for way in evaluators}
        for repetition in range(options["repetitions"]):
            for way in rotated(list(evaluators), repetition):
                seconds, found = _timed(partial(_compare, evaluators[way], model, questions, options["batch_size"]))
                spent[way].append(seconds)
        rows.append({"part": name, "questions_of_each_side": len(found), **_side_by_side(spent)})
        comparisons += found
    evaluation = Evaluation(comparisons, np.zeros(len(facts), dtype=np.bool_), distances[0].name)
    changed = sum(row.before.text != row.after.text for row in comparisons)
    return {
        "settings": options,
        "parts": rows,
        "generation": generation,
        "answers_that_differ_between_sides": changed,
        "locality": float(np.nanmean(evaluation.scores["locality"])),
        "peak_memory_gb": peak_memory_gb(),
    }


def _side_by_side(spent: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Seconds of each repetition padded and by trees, and how much less processor time trees need, paired."""
    quotients = [
        padded["processor_seconds"] / trees["processor_seconds"]
        for padded, trees in zip(spent["padded"], spent["trees"], strict=True)
    ]
    return {**spent, "trees_faster_by": spread(quotients)}


def _with_probes(facts: Sequence[Fact]) -> list[Fact]:
    """Every fact with the same number of paraphrases and neighbours, made up from its own where it has fewer."""
    return [
        replace(
            fact,
            paraphrases=(
                *fact.paraphrases,
                f"It is true that {fact.prompt}",
                f"As is well known, {fact.prompt}",
                f"Everybody knows that {fact.prompt}",
            )[:NUM_PARAPHRASES],
            neighborhood=(*fact.neighborhood, *facts[place - 1].neighborhood)[:NUM_NEIGHBORS],
        )
        for place, fact in enumerate(facts)
    ]


def _compare(
    evaluator: Evaluator, model: PeftModel, questions: Sequence[Question], batch_size: int
) -> list[Comparison]:
    """Both sides, in batches of questions of similar length, as the data module makes them."""
    ordered = sorted(questions, key=lambda one: -(len(one.prompt_ids) + one.max_new_tokens))
    return [
        row
        for start in range(0, len(ordered), batch_size)
        for row in evaluator.compare(model, ordered[start : start + batch_size])
    ]


def _against_one_by_one(model: PeftModel, encoder: FactEncoder, questions: Sequence[Question]) -> dict[str, Any]:
    """Seconds of the same free answers in batches and one prompt at a time.

    Raises:
        SystemExit: If they are not the same.
    """
    prompts, most = [one.prompt_ids for one in questions], [one.max_new_tokens for one in questions]

    def answers(batch_size: int) -> list[list[int]]:
        return greedy_answers(
            model,
            prompts,
            most,
            pad_id=encoder.pad_id,
            stop_ids=encoder.stop_ids,
            batch_size=batch_size,
        )

    in_batches, batched = _timed(lambda: answers(64))
    one_by_one, single = _timed(lambda: answers(1))
    differing = sum(left != right for left, right in zip(batched, single, strict=True))
    if differing:
        raise SystemExit(f"{differing} of {len(prompts)} answers differ between batches and one prompt at a time")
    return {
        "prompts": len(prompts),
        "tokens": sum(map(len, single)),
        "in_batches": in_batches,
        "one_by_one": one_by_one,
        "faster_by": {name: one_by_one[name] / in_batches[name] for name in one_by_one},
    }


def _timed(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds by the clock, and of all processors together: beside other jobs only the second is meaningful."""
    started, used = time.perf_counter(), time.process_time()
    result = run()
    return {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - used}, result


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    table = Table("part", "questions of each side", "seconds: padded, trees", "trees need less processor time by")
    for row in result["parts"]:
        seconds = (f"{median(one['seconds'] for one in row[way]):.1f}" for way in ("padded", "trees"))
        ratio = row["trees_faster_by"]
        times = f"{ratio['median']:.2f} × ({ratio['min']:.2f}–{ratio['max']:.2f})"
        table.add_row(row["part"], str(row["questions_of_each_side"]), ", ".join(seconds), times)
    console = Console()
    console.print(table)
    made = result["generation"]
    by_clock, by_processor = made["faster_by"]["seconds"], made["faster_by"]["processor_seconds"]
    console.print(
        f"generation of {made['prompts']} answers: {made['in_batches']['seconds']:.1f} s in batches, "
        f"{made['one_by_one']['seconds']:.1f} s one by one; faster by {by_clock:.2f} × by the clock and "
        f"{by_processor:.2f} × in processor time; the same answers"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes `experiments/results/evaluation_speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_facts", type=int, default=256)
    parser.add_argument("--base_model", default="smollm2-135m")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--doubt_turns", type=int, default=3)
    parser.add_argument("--doubt_facts", type=int, default=64)
    parser.add_argument("--generation_prompts", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=1, help="of each part, padded and by trees in turn")
    parser.add_argument("--output", type=Path, help="folder of the result; experiments/results where left out")
    options = vars(parser.parse_args(arguments))
    output = options.pop("output")
    result = measure(options)
    show(result)
    print(keep("evaluation_speed", result, output))


if __name__ == "__main__":
    main()
