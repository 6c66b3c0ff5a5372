"""Writes facts in the contract, and converts published formats into it."""

import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lit_semantic_peft.arguments import require_instances
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.readers import Contradictions, read_facts
from lit_semantic_peft.facts.reading import listed
from lit_semantic_peft.facts.schema import Fact, FactSet
from lit_semantic_peft.files import atomic_path

OUTPUT_SUFFIXES: tuple[str, ...] = (".jsonl", ".jsonl.gz", ".parquet")
"""Suffixes of the files that can be written."""

ROWS_AT_ONCE = 10_000
"""Facts in a part of a Parquet file."""


def convert(
    sources: Sequence[str],
    output: str,
    *,
    format: str | None = None,
    dataset_split: str = "train",
    contradictions: Contradictions = "error",
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> FactSet:
    """Reads facts in any format that `read_facts` knows and writes them in the contract.

    Args:
        sources: What to read: files, folders, a Hub name, a built-in set.
        output: The file to write; its suffix is one of `OUTPUT_SUFFIXES`. It must not exist.
        format: As in `read_facts`.
        dataset_split: As in `read_facts`.
        contradictions: As in `read_facts`.
        columns: As in `read_facts`.
        skip_bad: As in `read_facts`.

    Returns:
        What was written, with what was left out.

    Raises:
        InputError: If `output` exists or cannot be written, or for what `read_facts` refuses.
    """
    path = output_path(output)
    fact_set = read_facts(
        sources,
        dataset_split=dataset_split,
        contradictions=contradictions,
        format=format,
        columns=columns,
        skip_bad=skip_bad,
        show_progress=True,
    )
    write_output(fact_set.facts, path)
    return fact_set


def output_path(output: str) -> Path:
    """The file that a command is to write.

    Args:
        output: What the user named.

    Raises:
        InputError: If its suffix is not one of `OUTPUT_SUFFIXES`, or it exists.
    """
    path = Path(output).expanduser()
    if not path.name.endswith(OUTPUT_SUFFIXES):
        raise InputError(f"`OUT`: expected a file that ends in {listed(OUTPUT_SUFFIXES)}, got {output!r}")
    if os.path.lexists(path):
        raise InputError(f"`OUT`: {output} exists already. Remove it, or name another file.")
    return path


def write_output(facts: Sequence[Fact], path: Path) -> None:
    """As `write_facts`, for a file that a user named.

    Args:
        facts: The facts.
        path: From `output_path`.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        write_facts(facts, path)
    except OSError as error:
        raise InputError(f"`OUT`: {path} cannot be written: {error.strerror or error}") from error


def write_facts(facts: FactSet | Sequence[Fact], path: str | os.PathLike[str]) -> None:
    """Writes facts to a file, atomically. `read_facts` reads equal facts back.

    Args:
        facts: The facts, or what `read_facts` returned.
        path: The file; its suffix is one of `OUTPUT_SUFFIXES`.

    Raises:
        InputError: If it has another suffix, or these are no facts: records become facts by `read_facts`.
    """
    path = Path(path).expanduser()
    if not path.name.endswith(OUTPUT_SUFFIXES):
        raise InputError(f"`path`: expected a file that ends in {listed(OUTPUT_SUFFIXES)}, got {str(path)!r}")
    if isinstance(facts, FactSet):
        facts = facts.facts
    require_instances("facts", facts, Fact, "Fact(prompt='The capital of France is', target='Paris')")
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(facts, temporary)
        elif path.suffix == ".gz":
            # No file name and time in the header, so that the same facts give the same bytes.
            with open(temporary, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                packed.writelines(_lines(facts))
        else:
            with open(temporary, "wb") as file:
                file.writelines(_lines(facts))


def _lines(facts: Sequence[Fact]) -> Iterator[bytes]:
    return (json.dumps(fact.to_json(), ensure_ascii=False).encode() + b"\n" for fact in facts)


def _write_parquet(facts: Sequence[Fact], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, texts = pa.string(), pa.list_(pa.string())
    pair = [("prompt", text), ("target", text)]
    form, neighbour = pa.struct([*pair, ("joiner", text)]), pa.struct(pair)
    consequence = pa.struct([*pair, ("hops", pa.int64()), ("needs", texts), ("trainable", pa.bool_())])
    schema = pa.schema(
        [(name, text) for name in ("id", "subject", "relation", "prompt", "target")]
        + [("aliases", texts), ("joiner", text), ("target_true", text), ("paraphrases", texts)]
        + [
            ("forms", pa.list_(form)),
            ("neighborhood", pa.list_(neighbour)),
            ("portability", pa.list_(consequence)),
            ("yes_no", pa.list_(neighbour)),
        ]
        + [(name, text) for name in ("question", "split", "source")]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(facts), ROWS_AT_ONCE):
            rows = [fact.to_json() for fact in facts[start : start + ROWS_AT_ONCE]]
            writer.write_table(pa.Table.from_pylist(rows, schema))
