"""The divergence from a teacher of which only the most likely tokens are kept, the rest as one mass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_POSITIONS = 64
"""Of which logits are worked with at once."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Distributions over the next token at N positions: the k most likely tokens of each, and the rest as one.

    Attributes:
        ids: integers `(N, k)`.
        log_probs: float32 `(N, k)`.
        log_rest: float32 `(N,)`, log of the probability of all other tokens together.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor

    def to(self, device: torch.device) -> "TopTokens":
        """The same on another device.

        Args:
            device: The device.
        """
        return TopTokens(self.ids.to(device), self.log_probs.to(device), self.log_rest.to(device))

    def __getitem__(self, positions: slice) -> "TopTokens":
        return TopTokens(self.ids[positions], self.log_probs[positions], self.log_rest[positions])

    @staticmethod
    def cat(parts: "Sequence[TopTokens]") -> "TopTokens":
        """One after the other.

        Args:
            parts: At least one, all of the same k.
        """
        return TopTokens(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.log_rest for part in parts]),
        )


def top_tokens(logits: Tensor, k: int | None) -> TopTokens:
    """The k most likely tokens of each position, and the rest.

    Args:
        logits: float `(N, V)`; −inf for a token that is not in question.
        k: How many, ≥ 1. None, or more than there are: all but the least likely token in question, which makes the
            rest a single token and the distribution whole.
    """
    log_probs = logits.detach().float().log_softmax(dim=-1)
    most = int(log_probs.isfinite().sum(dim=-1).min()) - 1 if len(logits) else 1
    top = log_probs.topk(most if k is None else min(k, most), dim=-1)
    log_rest = log_probs.scatter(-1, top.indices, -torch.inf).logsumexp(dim=-1)
    return TopTokens(top.indices, top.values, log_rest)


def divergence_from(teacher: TopTokens, logits: Tensor) -> Tensor:
    """KL(teacher ‖ student) over k + 1 outcomes: the teacher's k most likely tokens, and "another token".

    At most the divergence over the whole vocabulary (data-processing inequality), equal to it where the rest is one
    token. Range: [0, ∞) nats.

    Args:
        teacher: The distributions to keep.
        logits: float `(N, V)` of the student; −inf for a token that is not in question.

    Returns:
        float32 `(N,)`, differentiable in `logits`.

    Example:
        >>> base = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
        >>> abs(divergence_from(top_tokens(base, 2), base + 5.0).item()) < 1e-6
        True
    """
    divergence: Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        logits.float(), teacher.ids.long(), teacher.log_probs, teacher.log_rest
    )
    return divergence


class _Divergence(torch.autograd.Function):
    """Some positions at a time, so that beside the logits in float32 only their gradient is as large as they are.

    With p the teacher, q the student and R the rest, ∂/∂z_v is q(v) − p(v) for one of the k tokens, and
    q(v) − p(R) q(v) / q(R) for another one.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, log_probs: Tensor, log_rest: Tensor) -> Tensor:
        top = logits.gather(-1, ids)
        parts = zip(torch.split(logits, _POSITIONS), torch.split(ids, _POSITIONS), strict=True)
        rest = torch.cat([z.scatter(-1, one, -torch.inf).logsumexp(dim=-1) for z, one in parts])
        log_total = torch.logaddexp(top.logsumexp(dim=-1), rest)
        ctx.save_for_backward(logits, ids, log_probs, log_rest, rest, log_total)
        of_top = log_probs.exp() * (log_probs - top + log_total[:, None])
        return of_top.sum(dim=-1) + log_rest.exp() * (log_rest - rest + log_total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        logits, ids, log_probs, log_rest, rest, log_total = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for start in range(0, len(logits), _POSITIONS):
            at = slice(start, start + _POSITIONS)
            of_rest = log_rest[at, None].exp() * (logits[at] - rest[at, None]).exp()
            student = (logits[at] - log_total[at, None]).exp()
            of_top = student.gather(-1, ids[at]) - log_probs[at].exp()
            gradient[at] = (student - of_rest).scatter(-1, ids[at], of_top) * outer[0][at, None]
        return gradient, None, None, None


def without_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits in which one token of each position is not in question: its probability is 0, the others' sum to 1.

    Args:
        logits: float `(N, V)`.
        tokens: int64 `(N,)`.
    """
    return logits.scatter(-1, tokens[:, None], -torch.inf)
