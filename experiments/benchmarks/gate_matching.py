"""What it costs to look for 100,000 subjects in a prompt: milliseconds by length, and the memory of the automaton.

python -m experiments.benchmarks.gate_matching    # half a minute
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments.benchmarks.measured import keep, peak_memory_gb
from lit_semantic_peft.adapters import SubjectTable

_LETTERS = "aabcdeeefghiiklmnooprstuvwyz"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--subjects", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, default=2_000)
    parser.add_argument("--results", type=Path, help="folder for the JSON file; experiments/results if not set")
    options = parser.parse_args(arguments)
    drawn = random.Random(0)
    before = peak_memory_gb()
    table = SubjectTable(tuple({_name(drawn) for _ in range(options.subjects)}))
    start = time.perf_counter()
    table.opens("")
    result: dict[str, Any] = {
        "subjects": len(table.names),
        "seconds_to_build": time.perf_counter() - start,
        "memory_mb": 1e3 * (peak_memory_gb() - before),
        "by_words": {},
    }
    for num_words in (10, 100, 1000):
        prompts = [_prompt(num_words, table.names, drawn) for _ in range(max(1, 10 * options.prompts // num_words))]
        milliseconds = []
        for prompt in prompts:
            start = time.process_time()  # other work of the machine does not count
            assert table.opens(prompt)
            milliseconds.append(1e3 * (time.process_time() - start))
        result["by_words"][num_words] = {
            "prompts": len(prompts),
            "mean_ms": float(np.mean(milliseconds)),
            "p99_ms": float(np.quantile(milliseconds, 0.99)),
        }
    print(result)
    print(f"Written: {keep('gate_matching', result, options.results)}")


def _name(drawn: random.Random) -> str:
    return f"{_word(drawn).title()} {_word(drawn).title()}"


def _word(drawn: random.Random) -> str:
    return "".join(drawn.choices(_LETTERS, k=drawn.randint(3, 9)))


def _prompt(num_words: int, names: Sequence[str], drawn: random.Random) -> str:
    words = [_word(drawn) for _ in range(num_words - 2)]
    words.insert(num_words // 2, drawn.choice(names))
    return " ".join(words)


if __name__ == "__main__":
    main()
