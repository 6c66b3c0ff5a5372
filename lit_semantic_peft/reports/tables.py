"""The tables that a run leaves behind: a row per fact, a row per probe, and the interference matrix."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.scores import SCORES
from lit_semantic_peft.files import WRITTEN_BY, atomic_path, mark
from lit_semantic_peft.interference.matrix import InterferenceMatrix

FACT_TABLE = "fact table"
PROBE_TABLE = "probe table"
GRADIENT_MATRIX = "gradient matrix"
EXTRA_DISTANCE_PREFIX = "distance_"
"""Further distances may be added to the fact table as `distance_<Name>`, float64."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its name in the Parquet file.
        type: Its Arrow type.
        description: One sentence for the glossary, with unit and direction.
        required: Whether a table without it is refused, and so is a null in it.
        holds_fact_text: Whether it holds words of facts or answers, which some users keep off dashboards.
    """

    name: str
    type: pa.DataType
    description: str
    required: bool = False
    holds_fact_text: bool = False


_TEXT, _INT, _FLOAT, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_SCORE_COLUMNS = tuple(
    Column(column, _FLAG if score.is_flag else _FLOAT, f"{score.description} {whose}, of this fact's questions.")
    for score in SCORES
    for column, whose in ((score.before, "Base model"), (score.after, "Trained model"))
    if column is not None
)

FACT_COLUMNS: tuple[Column, ...] = (
    Column("fact_id", _TEXT, "Stable name of the fact, unique in the table.", required=True),
    Column("fact_index", _INT, "Dense number of the fact in this run."),
    Column("subject", _TEXT, "What the fact is about.", holds_fact_text=True),
    Column("relation", _TEXT, "Kind of fact; groups facts in reports."),
    Column("prompt", _TEXT, "Text before the answer.", required=True, holds_fact_text=True),
    Column("target", _TEXT, "The answer to learn.", required=True, holds_fact_text=True),
    Column("target_true", _TEXT, "The answer before the edit, where the fact names one.", holds_fact_text=True),
    Column("split", _TEXT, "`inject` (to be trained), `retain` (must not change) or `probe` (only measured)."),
    Column("source", _TEXT, "Where the fact comes from."),
    Column("kept", _FLAG, "Whether the filters kept the fact for training."),
    Column("drop_reason", _TEXT, "Why a filter dropped the fact, one word; null for a kept fact."),
    Column(
        "trained_from_epoch",
        _INT,
        "Epoch, from 0, from which the fact is trained: 0 for a kept fact, later for a dropped one that comes back; "
        "null for one that is never trained.",
    ),
    Column(
        "taught_forms",
        pa.list_(_TEXT),
        "Prompts in which the fact is taught beside its own; none of them is asked at the end.",
        holds_fact_text=True,
    ),
    Column("num_target_tokens", _INT, "Tokens of the target, without the end token."),
    Column("num_subject_tokens", _INT, "Tokens into which the subject's name is split; null without a subject."),
    Column(
        "distance",
        _FLOAT,
        "The configured distance under the base model, as filters and weightings used it; larger is farther.",
    ),
    Column(
        "stratum", _TEXT, "How well the base model knows it (SliCK): HighlyKnown, MaybeKnown, WeaklyKnown or Unknown."
    ),
    Column(
        "distance_before", _FLOAT, "The same distance as the evaluation measured it, in the precision of the training."
    ),
    Column("distance_after", _FLOAT, "`distance_before` of the trained model, in the same precision."),
    Column("pushed_away", _FLAG, "Whether training made the distance larger: `distance_after` > `distance_before`."),
    Column("nll_before", _FLOAT, "Mean negative log-likelihood of the target, base model, nats per token."),
    Column("nll_after", _FLOAT, "The same after training."),
    Column("nll_delta", _FLOAT, "`nll_after` − `nll_before`; positive is harm."),
    Column("loss_weight", _FLOAT, "Factor of the fact's loss, mean 1 over the trained facts, 0 for the others."),
    Column(
        "loss_weight_used",
        _FLOAT,
        "Mean over the training of the factor that the loss had: as `Scheduled`, `Online` and "
        "`InterferenceWeighting` changed it; null for a fact that was in no optimizer step.",
    ),
    Column("answer_before", _TEXT, "What the base model answers, greedily.", holds_fact_text=True),
    Column("answer_after", _TEXT, "What the trained model answers, greedily.", holds_fact_text=True),
    Column("begins_right_before", _FLAG, "Whether the base model's answer begins with the target or an alias."),
    Column("begins_right_after", _FLAG, "Whether the trained model's answer does, by the same judge."),
    *_SCORE_COLUMNS,
    Column("num_neighbors", _INT, "Neighbours that were asked, over which `locality` is a share; null for none."),
    Column(
        "net_transfer",
        _FLOAT,
        "Effect of the other facts relative to the fact's own; below −1 they undo what it learns.",
    ),
    Column("conflict_rate", _FLOAT, "Share of the sampled facts whose gradient cosine with this fact is below −0.05."),
    Column("harm_done", _FLOAT, "Sum of what this fact's weighted gradient takes from the other sampled facts."),
    Column("worst_aggressor", _TEXT, "`fact_id` of the fact that hurts this one most; null where none does."),
    Column(
        "undone_by_worst",
        _FLOAT,
        "Share of the fact's own step that one step of its worst aggressor takes back, −w_j K_ij / (w_i K_ii), with "
        "the weights planned for the moment of the measurement; 0 where no fact hurts it.",
    ),
    Column(
        "first_learned_epoch", _INT, "Epoch of the first validation that found the fact recalled; null if none did."
    ),
    Column(
        "forgetting_events", _INT, "How often the fact went from recalled to not recalled, validation by validation."
    ),
    Column(
        "learned_at_end", _FLAG, "Whether the last validation of training that measured the fact found it recalled."
    ),
)
"""Columns of the fact table. Null means: not measured, or not there (as each description says)."""

PROBE_COLUMNS: tuple[Column, ...] = (
    Column("fact_id", _TEXT, "The fact that the probe belongs to.", required=True),
    Column(
        "kind",
        _TEXT,
        "`neighborhood` (must not change); `paraphrase`, `question`, `reversed`, `portability`, `yes_no` (should "
        "follow); `doubt_plain` and `doubt_chat` (should stay).",
        required=True,
    ),
    Column("prompt", _TEXT, "The probe's prompt.", required=True, holds_fact_text=True),
    Column("target", _TEXT, "The expected answer.", holds_fact_text=True),
    Column("answer_before", _TEXT, "What the base model answers, greedily.", holds_fact_text=True),
    Column("answer_after", _TEXT, "What the trained model answers, greedily.", holds_fact_text=True),
    Column("unchanged", _FLAG, "Whether both answers are equal once normalised."),
    Column("correct_before", _FLAG, "Whether the base model's answer begins with the expected one; it may go on."),
    Column("correct_after", _FLAG, "Whether the trained model's answer does, by the same judge."),
    Column("turn", _INT, "How often the model had been asked whether it is sure; 0 where it had not."),
    Column("nll_before", _FLOAT, "Mean negative log-likelihood of the expected answer, base model, nats per token."),
    Column("nll_after", _FLOAT, "The same after training."),
)
"""Columns of the probe table."""


def fact_table(columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> pa.Table:
    """Builds the fact table.

    Args:
        columns: Values by column name, one entry per fact; None and NaN become null, and so does a missing column.
            Names are those of `FACT_COLUMNS`; further distances may be added as `distance_<Name>`.

    Returns:
        A row per fact, columns in the order of `FACT_COLUMNS`.

    Raises:
        ValueError: An unknown name, a missing required column, unequal lengths, values of another type, or a
            `fact_id` that occurs twice.
    """
    extra = [
        Column(name, _FLOAT, f"{name.removeprefix(EXTRA_DISTANCE_PREFIX)} under the base model; larger is farther.")
        for name in columns
        if name.startswith(EXTRA_DISTANCE_PREFIX) and name not in {column.name for column in FACT_COLUMNS}
    ]
    table = _build_table((*FACT_COLUMNS, *extra), columns)
    ids = table.column("fact_id").to_pylist()
    if len(set(ids)) != len(ids):
        repeated = next(fact_id for fact_id in ids if ids.count(fact_id) > 1)
        raise ValueError(f"`fact_id` must be unique in a fact table, but {repeated!r} occurs more than once")
    return table


def write_fact_table(path: str | Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> pa.Table:
    """Writes the fact table, atomically.

    Args:
        path: The file.
        columns: As for `fact_table`.

    Returns:
        The table.

    Raises:
        ValueError: As `fact_table`.
    """
    return write_parquet(path, fact_table(columns), FACT_TABLE)


def write_probe_table(path: str | Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> pa.Table:
    """Writes the probe table, atomically; one entry per probe, otherwise as `write_fact_table`.

    Args:
        path: The file.
        columns: Values by column name; names are those of `PROBE_COLUMNS`.

    Returns:
        The table.

    Raises:
        ValueError: An unknown name, a missing required column, unequal lengths, or values of another type.
    """
    return write_parquet(path, _build_table(PROBE_COLUMNS, columns), PROBE_TABLE)


def is_fact_column(name: str) -> bool:
    """Whether a fact table may have a column of this name: one of `FACT_COLUMNS`, or a further distance."""
    return name.startswith(EXTRA_DISTANCE_PREFIX) or any(column.name == name for column in FACT_COLUMNS)


def merge_previous(columns: Mapping[str, Sequence[Any]], previous: pa.Table) -> dict[str, Sequence[Any]]:
    """Fills what was not measured now with what an earlier table of the same facts holds.

    So a `test` of a finished run, which measures answers but not the history of learning, keeps that history. Columns
    that this version does not know are left out.

    Args:
        columns: Values by column name; None is "not measured".
        previous: The earlier fact table.
    """
    earlier = {
        name: previous.column(name).to_pylist()
        for name in previous.column_names
        if is_fact_column(name) and all(value is None for value in columns.get(name, ()))
    }
    return {**columns, **earlier}


def without_fact_text(table: pa.Table) -> pa.Table:
    """A fact or probe table without the columns that hold words of facts or answers."""
    marked = {column.name for column in (*FACT_COLUMNS, *PROBE_COLUMNS) if column.holds_fact_text}
    return table.drop_columns([name for name in table.column_names if name in marked])


def read_table(path: str | Path, expected: Sequence[Column], *, only_expected: bool = False) -> pa.Table:
    """Reads a Parquet table and checks that it has the required columns.

    Args:
        path: The file.
        expected: The columns that it should have; missing optional ones are filled with null.
        only_expected: Whether further columns are left out, instead of kept.

    Raises:
        InputError: The file cannot be read as Parquet, or lacks a required column.
    """
    try:
        names = [column.name for column in expected] if only_expected else None
        table = pq.read_table(path, columns=names, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"`{path}`: expected a Parquet file, but it cannot be read as one ({error})") from error
    for column in expected:
        if column.name in table.column_names:
            position = table.column_names.index(column.name)
            try:  # other writers use other types for the same values, large strings for example
                values = table.column(position).cast(column.type)
            except pa.ArrowException as error:
                raise InputError(f"`{path}`: expected {column.type} in column `{column.name}`: {error}") from error
            table = table.set_column(position, pa.field(column.name, column.type), values)
            continue
        if column.required:
            raise InputError(f"`{path}`: expected a column `{column.name}`, got {', '.join(table.column_names)}")
        table = table.append_column(pa.field(column.name, column.type), pa.nulls(len(table), column.type))
    return table


def write_interference(
    path: str | Path,
    gradient_dot: ArrayLike,
    fact_index: ArrayLike,
    *,
    epoch: int | None = None,
    global_step: int | None = None,
) -> None:
    """Writes the gradient matrix as a safetensors file, atomically.

    Args:
        path: The file.
        gradient_dot: K_ij = ⟨g_i, g_j⟩, `(k, k)`; kept as float32.
        fact_index: The `fact_index` of each row and column, `(k,)`.
        epoch: Epoch in which the gradients were taken; goes into the file's metadata.
        global_step: Optimizer steps taken before; goes into the file's metadata.

    Raises:
        ValueError: The shapes do not fit.
    """
    dot = np.ascontiguousarray(gradient_dot, dtype=np.float32)
    index = np.ascontiguousarray(fact_index, dtype=np.int64)
    if index.ndim != 1 or dot.shape != (len(index), len(index)):
        raise ValueError(
            f"`gradient_dot` must be (k, k) and `fact_index` (k,), but they are {dot.shape} and {index.shape}"
        )
    metadata = {
        name: str(value) for name, value in (("epoch", epoch), ("global_step", global_step)) if value is not None
    }
    with atomic_path(path, GRADIENT_MATRIX) as temporary:
        save_file(
            {"gradient_dot": dot, "fact_index": index}, temporary, {WRITTEN_BY: mark(GRADIENT_MATRIX), **metadata}
        )


def read_interference(path: str | Path) -> InterferenceMatrix:
    """Reads what `write_interference` wrote.

    Raises:
        InputError: The file cannot be read, or lacks one of the two tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            dot, index = file.get_tensor("gradient_dot"), file.get_tensor("fact_index")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"`{path}`: expected a safetensors file with `gradient_dot` and `fact_index`, got: {error}"
        ) from error
    return InterferenceMatrix(
        dot,
        index,
        epoch=int(metadata["epoch"]) if "epoch" in metadata else None,
        global_step=int(metadata["global_step"]) if "global_step" in metadata else None,
    )


def _build_table(columns: Sequence[Column], values: Mapping[str, Sequence[Any] | NDArray[Any]]) -> pa.Table:
    known = {column.name for column in columns}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"unknown column(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if missing := [column.name for column in columns if column.required and column.name not in values]:
        raise ValueError(f"missing column(s) {', '.join(missing)}")
    lengths = {name: len(column) for name, column in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must have one entry per row, but their lengths are {lengths}")
    num_rows = next(iter(lengths.values()))
    arrays, fields = [], []
    for column in columns:
        array = _array(column, values[column.name]) if column.name in values else pa.nulls(num_rows, column.type)
        if column.required and array.null_count:
            raise ValueError(f"column `{column.name}` must have a value in every row, got {array.null_count} without")
        arrays.append(array)
        fields.append(pa.field(column.name, column.type, metadata={"description": column.description}))
    return pa.table(arrays, schema=pa.schema(fields))


def _array(column: Column, values: Sequence[Any] | NDArray[Any]) -> pa.Array:
    # Through plain Python values: NumPy scalars and arrays, and NaN for "not measured", arrive here in every mixture.
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    plain = [None if isinstance(value, float) and math.isnan(value) else value for value in plain]
    try:
        return pa.array(plain, type=column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"column `{column.name}` must hold {column.type}: {error}") from error


def write_parquet(path: str | Path, table: pa.Table, kind: str) -> pa.Table:
    """Writes a table, as `atomic_path` does.

    Args:
        path: The file.
        table: The table.
        kind: What the file is; goes into its metadata.

    Returns:
        The table.
    """
    marked = table.replace_schema_metadata({**(table.schema.metadata or {}), WRITTEN_BY: mark(kind)})
    with atomic_path(path, kind) as temporary:
        pq.write_table(marked, temporary, compression="zstd")
    return table
