"""The metrics as pure functions of sums and counts; those of answers are imported from `text`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_semantic_peft.interference.influence import is_conflict
from lit_semantic_peft.metrics.text import is_exact_match, normalize_answer, starts_with_answer

__all__ = [
    "distance_decile",
    "group_interference",
    "interference_summary",
    "is_exact_match",
    "is_pushed_away",
    "kl_from_likeliest",
    "likeliest_tokens",
    "mean_over_facts",
    "normalize_answer",
    "per_fact_mean",
    "share",
    "starts_with_answer",
    "target_probability",
]


def per_fact_mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean of each fact's measurements.

    Args:
        total: Sum of the measurements, float, any shape.
        count: Number of the measurements, int64, same shape.

    Returns:
        float, same shape and unit as `total`; NaN where nothing was measured.

    Example:
        >>> per_fact_mean(torch.tensor([3.0, 0.0]), torch.tensor([2, 0])).tolist()
        [1.5, nan]
    """
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def mean_over_facts(total: Tensor, count: Tensor) -> Tensor:
    """Mean over the measured facts of each fact's own mean, so that a fact measured twice counts once.

    Args:
        total: Sum of each fact's measurements, float `(n,)`.
        count: Number of each fact's measurements, int64 `(n,)`.

    Returns:
        float scalar, unit of `total`; NaN where no fact was measured or a measured value is NaN.

    Example:
        >>> mean_over_facts(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([2, 1, 0])).item()
        0.5
    """
    is_measured = count > 0
    total_of_means = torch.where(is_measured, total / count.clamp(min=1), 0.0).sum()
    return per_fact_mean(total_of_means, is_measured.sum())


def is_pushed_away(distance_delta: Tensor, epsilon: float = 0.0) -> Tensor:
    """Facts whose distance from the model has increased: d_after − d_before > ε.

    Args:
        distance_delta: d_after − d_before, float `(n,)`; NaN where not measured.
        epsilon: ε ≥ 0, in the unit of the distance.

    Returns:
        bool `(n,)`, False where not measured. Source: the first finding of Wang & Li 2024, our reading.

    Example:
        >>> is_pushed_away(torch.tensor([0.2, 0.0, -0.1, torch.nan]), epsilon=0.1).tolist()
        [True, False, False, False]
    """
    return distance_delta > epsilon


def share(condition: Tensor, is_counted: Tensor) -> Tensor:
    """Share of the counted entries for which a condition holds.

    Args:
        condition: bool, any shape.
        is_counted: bool, same shape.

    Returns:
        float32 scalar in [0, 1]; NaN where nothing is counted.

    Example:
        >>> share(torch.tensor([True, False, True]), torch.tensor([True, True, False])).item()
        0.5
    """
    return per_fact_mean((condition & is_counted).sum().float(), is_counted.sum())


def interference_summary(
    gradient_cosine: Tensor, net_transfer: Tensor, harm_done: Tensor, threshold: float = 0.05
) -> dict[str, Tensor]:
    """Summarizes interference in a few float scalars for a logger.

    Args:
        gradient_cosine: C, float `(k, k)`.
        net_transfer: float `(k,)`.
        harm_done: float `(k,)`.
        threshold: τ ≥ 0; a pair is in conflict where C_ij < −τ.

    Returns:
        - `conflict_rate`: share of the pairs i < j with a defined cosine that are in conflict, [0, 1];
        - `gradient_cosine_mean`: mean of C_ij over those pairs, [−1, 1];
        - `net_transfer_median`: median over the facts where it is defined;
        - `share_net_transfer_below_0`: share of those facts that the others hurt, [0, 1];
        - `share_net_transfer_below_minus_1`: share of those facts that the others undo, [0, 1];
        - `harm_done_top_tenth`: share of all harm that is done by the most harmful tenth of the facts, [0, 1];
        - `num_undefined_facts`: facts whose net transfer is not defined.

        A share of zero entries is NaN.
    """
    is_pair = torch.isfinite(gradient_cosine) & torch.ones_like(gradient_cosine, dtype=torch.bool).triu(diagonal=1)
    is_defined = torch.isfinite(net_transfer)
    harm = torch.where(torch.isfinite(harm_done), harm_done, 0.0).sort(descending=True).values
    num_top = -(-len(harm) // 10)
    total_harm = harm.sum()
    return {
        "conflict_rate": share(is_conflict(gradient_cosine, threshold), is_pair),
        "gradient_cosine_mean": per_fact_mean(torch.where(is_pair, gradient_cosine, 0.0).sum(), is_pair.sum()),
        "net_transfer_median": torch.where(is_defined, net_transfer, torch.nan).nanquantile(0.5),
        "share_net_transfer_below_0": share(net_transfer < 0, is_defined),
        "share_net_transfer_below_minus_1": share(net_transfer < -1, is_defined),
        "harm_done_top_tenth": torch.where(
            total_harm > 0, harm[:num_top].sum() / torch.where(total_harm > 0, total_harm, 1.0), torch.nan
        ),
        "num_undefined_facts": (~is_defined).sum().float(),
    }


def target_probability(nll: Tensor, num_target_tokens: Tensor) -> Tensor:
    """Probability of a whole target under its prompt: exp(−ℓ m).

    Args:
        nll: ℓ, mean negative log-likelihood of the target's tokens, float `(B,)`, nats per token.
        num_target_tokens: m, int64 `(B,)`.

    Returns:
        float `(B,)` in [0, 1].

    Example:
        >>> target_probability(torch.tensor([0.0, 0.6931]), torch.tensor([3, 2])).tolist()
        [1.0, 0.2500...]
    """
    return torch.exp(-nll * num_target_tokens)


def likeliest_tokens(logits: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The K most likely tokens of a model, for a later comparison with another model.

    Args:
        logits: float `(N, V)`.
        num_tokens: K, how many to keep; all V where V is smaller.

    Returns:
        Their ids, int64 `(N, K)`, and their log-probabilities, float32 `(N, K)`.
    """
    values, ids = F.log_softmax(logits.float(), dim=-1).topk(min(num_tokens, logits.shape[-1]), dim=-1)
    return ids, values


def kl_from_likeliest(token_ids: Tensor, reference_log_prob: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ q) over the K most likely tokens of p, with "any other token" as one more outcome.

    Merging outcomes can only lower a divergence, so this is a lower bound of the divergence over the whole vocabulary.
    Of p only K numbers must be stored instead of V.

    Args:
        token_ids: The K likeliest tokens of p, int64 `(N, K)`.
        reference_log_prob: Their log-probabilities under p, float `(N, K)`.
        logits: Logits of q, float `(N, V)`.

    Returns:
        float64 `(N,)`, nats, ≥ 0 up to rounding; exactly 0 where q gives the tokens the same log-probabilities.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
        >>> kept = likeliest_tokens(logits, 2)
        >>> kl_from_likeliest(*kept, logits).item(), round(kl_from_likeliest(*kept, -logits).item(), 2)
        (0.0, 1.93)
    """
    log_prob = F.log_softmax(logits.float(), dim=-1).gather(-1, token_ids)
    reference, other = (_with_rest(values.double()) for values in (reference_log_prob, log_prob))
    # p log(p / q) is 0 where p is 0.
    return (reference.exp() * (reference - other)).sum(dim=-1)


def _with_rest(log_prob: Tensor) -> Tensor:
    """Log-probabilities, with that of all other outcomes together appended."""
    # Below 1e-7 the remaining probability is rounding error: the log-probabilities are float32.
    rest = (1 - log_prob.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-7)
    return torch.cat([log_prob, rest.log()], dim=-1)


def group_interference(
    gradient_cosine: Tensor, net_transfer: Tensor, harm_done: Tensor, is_member: Tensor, threshold: float = 0.05
) -> dict[str, float]:
    """Interference received and caused by the facts of one group (a relation, a stratum, a decile of distance).

    Args:
        gradient_cosine: C, float `(k, k)`.
        net_transfer: float `(k,)`.
        harm_done: float `(k,)`.
        is_member: Whether each fact is in the group, bool `(k,)`.
        threshold: τ ≥ 0; a pair is in conflict where C_ij < −τ.

    Returns:
        - `num_facts`: members;
        - `conflict_rate_within`: share of the pairs of two members that are in conflict, [0, 1];
        - `conflict_rate_across`: the same for the pairs of a member and another fact;
        - `net_transfer_median`: median over the members where it is defined;
        - `share_net_transfer_below_minus_1`: share of those that the others undo, [0, 1];
        - `share_of_harm_done`: the members' share of the harm that all facts do, [0, 1].

        A share of zero entries is NaN.

    Example:
        >>> cosine = torch.tensor([[1.0, -0.5, 0.2], [-0.5, 1.0, -0.1], [0.2, -0.1, 1.0]])
        >>> is_member = torch.tensor([True, True, False])
        >>> result = group_interference(cosine, torch.tensor([0.5, -2.0, 0.0]), torch.ones(3), is_member)
        >>> result["conflict_rate_within"], result["conflict_rate_across"]
        (1.0, 0.5)
    """
    is_pair = torch.isfinite(gradient_cosine) & torch.ones_like(gradient_cosine, dtype=torch.bool).triu(diagonal=1)
    num_members = is_member.int()[:, None] + is_member.int()[None, :]
    in_conflict = is_conflict(gradient_cosine, threshold)
    is_defined = torch.isfinite(net_transfer) & is_member
    harm = torch.where(torch.isfinite(harm_done), harm_done, 0.0)
    by_members = torch.where(is_member, harm, 0.0).sum()
    return {
        "num_facts": float(is_member.sum()),
        "conflict_rate_within": float(share(in_conflict, is_pair & (num_members == 2))),
        "conflict_rate_across": float(share(in_conflict, is_pair & (num_members == 1))),
        "net_transfer_median": float(torch.where(is_defined, net_transfer, torch.nan).nanquantile(0.5)),
        "share_net_transfer_below_minus_1": float(share(net_transfer < -1, is_defined)),
        "share_of_harm_done": float(by_members / harm.sum()) if harm.sum() > 0 else float("nan"),
    }


def distance_decile(distance: Tensor) -> Tensor:
    """Decile of each fact's distance, 1 (nearest) to 10 (farthest).

    Args:
        distance: float `(n,)`; NaN where not measured.

    Returns:
        int64 `(n,)`; 0 where not measured. Equal distances are ranked in file order, so that deciles are equally large.

    Example:
        >>> distance_decile(torch.tensor([0.9, 0.1, 0.5, torch.nan])).tolist()
        [7, 1, 4, 0]
    """
    is_measured = ~distance.isnan()
    rank = distance.argsort(stable=True).argsort(stable=True)  # NaN is sorted last
    decile = rank * 10 // is_measured.sum().clamp(min=1) + 1
    return torch.where(is_measured, decile, 0)
