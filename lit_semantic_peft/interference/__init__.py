"""Who hurts whom: gradients of single facts, and what they do to each other."""

from lit_semantic_peft.interference.alone import fact_log_probability, train_alone
from lit_semantic_peft.interference.feature_store import folder_if_large
from lit_semantic_peft.interference.influence import (
    conflict_rate,
    gradient_cosine,
    harm_done,
    is_conflict,
    net_transfer,
    predicted_change,
    undone_by,
    worst_aggressor,
)
from lit_semantic_peft.interference.keys import fact_keys, key_second_moment
from lit_semantic_peft.interference.per_fact_gradients import (
    gradient_matrix,
    gradient_matrix_rows,
    one_backward_per_fact,
    time_forward_and_backward,
)
from lit_semantic_peft.interference.sketch import GradientSketch, gradient_sketch, sketch_error, sketch_influence
from lit_semantic_peft.interference.warm_up import warm_up

__all__ = [
    "GradientSketch",
    "conflict_rate",
    "fact_keys",
    "fact_log_probability",
    "folder_if_large",
    "gradient_cosine",
    "gradient_matrix",
    "gradient_matrix_rows",
    "gradient_sketch",
    "harm_done",
    "is_conflict",
    "key_second_moment",
    "net_transfer",
    "one_backward_per_fact",
    "predicted_change",
    "sketch_error",
    "sketch_influence",
    "time_forward_and_backward",
    "train_alone",
    "undone_by",
    "warm_up",
    "worst_aggressor",
]
