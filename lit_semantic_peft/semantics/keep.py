"""How many facts a filter keeps: `keep` as a share or as a count, and within each relation or over all."""

from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal

from lit_semantic_peft.errors import InputError


def require_keep(value: float) -> None:
    """Requires a share or a count.

    Args:
        value: `keep`: a share in (0, 1], or a whole number of at least 2 for that many facts.

    Raises:
        InputError: If it is neither.
    """
    if not (0 < value <= 1 or (value >= 2 and float(value).is_integer())):
        raise InputError(
            f"`keep` must be a share in (0, 1] or a whole number of at least 2 (that many facts), got {value!r}. "
            "For three quarters of the facts set 0.75."
        )


def num_kept(keep: float, num_facts: int) -> int:
    """Number of facts to keep: a share max(1, keep·n), rounded half up, or a count min(keep, n).

    The share is computed in decimal, so that 0.29 of 50 is 14.5, not 14.4999….

    Args:
        keep: A share or a count.
        num_facts: n ≥ 1.

    Example:
        >>> num_kept(0.29, 50), num_kept(20, 50), num_kept(100, 50), num_kept(1.0, 50)
        (15, 20, 50, 50)
    """
    if keep > 1:
        return min(int(keep), num_facts)
    exact = Decimal(repr(float(keep))) * num_facts
    return max(1, int(exact.to_integral_value(rounding=ROUND_HALF_UP)))


def rows_by(labels: tuple[str, ...]) -> dict[str, list[int]]:
    """Row numbers of each label, labels sorted.

    Args:
        labels: One label per row.

    Example:
        >>> rows_by(("b", "a", "b"))
        {'a': [1], 'b': [0, 2]}
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    return dict(sorted(rows.items()))
