"""Numbers and names of a run as text for people: one wording for page, terminal and sentences."""

from lit_semantic_peft.reports.records import Estimate

_REASONS = {
    "mean_variance": "left out by mean and variance of the distances",
    "random": "left out at random",
}


def percent(share: float | None) -> str:
    """A share as text; never rounded up to all or down to none.

    Example:
        >>> percent(0.5), percent(1.0), percent(0.9999), percent(0.0001), percent(None)
        ('50 %', '100 %', '>99 %', '<1 %', 'not measured')
    """
    if share is None:
        return "not measured"
    rounded = round(100 * share)
    if rounded == 100 and share < 1:
        return ">99 %"
    if rounded == 0 and share > 0:
        return "<1 %"
    return f"{rounded} %"


def mean_percent(estimate: Estimate | None) -> str:
    """The mean of a share, without its interval, as `percent`."""
    return percent(None if estimate is None else estimate.mean)


def estimate_text(estimate: Estimate | None, is_share: bool = True) -> str:
    """A mean with its interval.

    Example:
        >>> estimate_text(Estimate(0.5, 0.35, 0.625, 40)), estimate_text(Estimate(0.25, 0.125, 1.0, 9), is_share=False)
        ('50 % (35–62)', '0.250 (0.125 to 1.000)')
    """
    if estimate is None:
        return "not measured"
    if not is_share:
        return f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})".replace("-", "−")
    return f"{percent(estimate.mean)} ({round(100 * estimate.low)}–{round(100 * estimate.high)})"


def reason_phrase(reason: str) -> str:
    """A drop reason as words.

    Example:
        >>> reason_phrase("too_far"), reason_phrase("mean_variance")
        ('too far', 'left out by mean and variance of the distances')
    """
    return _REASONS.get(reason, reason.replace("_", " "))


def capitalized(text: str) -> str:
    """The text with a capital at its start; all else stays.

    Example:
        >>> capitalized("loss of GPT-2")
        'Loss of GPT-2'
    """
    return text[:1].upper() + text[1:]


def signed(value: float | None) -> str:
    """A number with its sign and two digits behind the point, none where it is large.

    Example:
        >>> signed(-0.126), signed(250.4), signed(None)
        ('−0.13', '+250', 'not measured')
    """
    if value is None:
        return "not measured"
    return (f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2f}").replace("-", "−")


def unbroken(text: str) -> str:
    """Keeps a number and its per cent sign on one line."""
    return text.replace(" %", "\u00a0%")


def cut(text: str | None, length: int) -> str:
    """The text, of a long one the beginning.

    Example:
        >>> cut("The capital of Fiji", 12), cut(None, 12)
        ('The capital…', 'not measured')
    """
    if text is None:
        return "not measured"
    return text if len(text) <= length else text[: length - 1] + "…"
