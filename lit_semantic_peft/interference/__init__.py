"""Who hurts whom: gradients of single facts, what they do to each other, and the course of learning."""

from lit_semantic_peft.interference.dynamics import final_state, first_learned, forgetting_events
from lit_semantic_peft.interference.influence import (
    conflict_rate,
    gradient_cosine,
    harm_done,
    is_conflict,
    net_transfer,
    worst_aggressor,
)
from lit_semantic_peft.interference.per_fact_gradients import gradient_matrix, one_backward_per_fact
from lit_semantic_peft.interference.warm_up import warm_up

__all__ = [
    "conflict_rate",
    "final_state",
    "first_learned",
    "forgetting_events",
    "gradient_cosine",
    "gradient_matrix",
    "harm_done",
    "is_conflict",
    "net_transfer",
    "one_backward_per_fact",
    "warm_up",
    "worst_aggressor",
]
