"""The page's section on experts: how busy they are, which subjects they have, who hurts whom among them."""

from typing import Any

from lit_semantic_peft.reports.phrases import percent, signed
from lit_semantic_peft.reports.records import PairsRecord, Summary

_MOST_ROWS = 400


def experts_view(summary: Summary) -> dict[str, Any] | None:
    """The contents of the section; None where the adapter has no experts.

    Args:
        summary: The run's numbers.
    """
    routing = summary.routing
    if routing is None or routing.effective_experts is None:
        return None
    shown = routing.experts[:_MOST_ROWS]
    cut = "" if len(shown) == len(routing.experts) else f" The first {len(shown)} of {len(routing.experts)} are listed."
    pairs = [("the same experts", routing.same_experts), ("different experts", routing.other_experts)]
    return {
        "about": (
            "Load: the expert\u2019s share of the choices of all tokens of the kept facts in a layer. Subjects: those "
            "whose tokens choose it most often there. Two facts have the same experts where they choose most often the "
            f"same one in at least half of the layers. {routing.effective_experts:.1f} experts of a layer are equally "
            f"busy, in effect (exp of the entropy of the load, mean over layers).{cut}"
        ),
        "pairs": [_pairs_row(name, pairs) for name, pairs in pairs if pairs is not None],
        "rows": [
            {
                "layer": one.layer,
                "expert": one.expert,
                "load": percent(one.load),
                "num_anchors": one.num_anchors,
                "anchors": ", ".join(one.anchors) + (", \u2026" if one.num_anchors > len(one.anchors) else ""),
            }
            for one in shown
        ],
    }


def _pairs_row(name: str, pairs: PairsRecord) -> dict[str, Any]:
    return {
        "name": name,
        "count": pairs.num_pairs,
        "cosine": signed(pairs.gradient_cosine),
        "conflict": percent(pairs.conflict_rate),
    }
