"""Who hurts whom: gradients of single facts, and what they do to each other."""

from typing import TYPE_CHECKING

from lit_semantic_peft.lazy import attach

if TYPE_CHECKING:
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
    from lit_semantic_peft.interference.matrix import InterferenceMatrix
    from lit_semantic_peft.interference.per_fact_gradients import (
        gradient_matrix,
        gradient_matrix_rows,
        one_backward_per_fact,
        time_forward_and_backward,
    )
    from lit_semantic_peft.interference.sketch import GradientSketch, gradient_sketch, sketch_error, sketch_influence
    from lit_semantic_peft.interference.warming_up import warm_up

# Loaded when first used: reports read the matrix of a run, and need no torch for it.
_MODULE_OF = {
    "fact_log_probability": "alone",
    "train_alone": "alone",
    "folder_if_large": "feature_store",
    "conflict_rate": "influence",
    "gradient_cosine": "influence",
    "harm_done": "influence",
    "is_conflict": "influence",
    "net_transfer": "influence",
    "predicted_change": "influence",
    "undone_by": "influence",
    "worst_aggressor": "influence",
    "fact_keys": "keys",
    "key_second_moment": "keys",
    "InterferenceMatrix": "matrix",
    "gradient_matrix": "per_fact_gradients",
    "gradient_matrix_rows": "per_fact_gradients",
    "one_backward_per_fact": "per_fact_gradients",
    "time_forward_and_backward": "per_fact_gradients",
    "GradientSketch": "sketch",
    "gradient_sketch": "sketch",
    "sketch_error": "sketch",
    "sketch_influence": "sketch",
    "warm_up": "warming_up",
}

__all__ = [
    "GradientSketch",
    "InterferenceMatrix",
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

__getattr__, __dir__ = attach(__name__, _MODULE_OF)
