"""What an adapter was taught, what else it changed, and whether to warn of it. Runs no code of the adapter's."""

from typing import TYPE_CHECKING

from lit_semantic_peft.lazy import attach

if TYPE_CHECKING:
    from lit_semantic_peft.audit.bank import BankComparison, compare_with_bank
    from lit_semantic_peft.audit.changes import ChangeFindings, LostFact, measure_changes
    from lit_semantic_peft.audit.inspection import Inspection, inspect, inspect_loaded
    from lit_semantic_peft.audit.page import audit_section, write_inspection
    from lit_semantic_peft.audit.says import NeutralFindings, SurfacedName, measure_neutral, surfaced
    from lit_semantic_peft.audit.verdict import RULES, Rule, Signal, judge
    from lit_semantic_peft.audit.watch import (
        WatchFindings,
        WatchList,
        builtin_watch_list,
        measure_watch,
        read_watch_list,
    )
    from lit_semantic_peft.audit.weights import LayerUpdate, WeightFindings, measure_weights

_MODULE_OF = {
    "BankComparison": "bank",
    "compare_with_bank": "bank",
    "ChangeFindings": "changes",
    "LostFact": "changes",
    "measure_changes": "changes",
    "Inspection": "inspection",
    "inspect": "inspection",
    "inspect_loaded": "inspection",
    "audit_section": "page",
    "write_inspection": "page",
    "NeutralFindings": "says",
    "SurfacedName": "says",
    "measure_neutral": "says",
    "surfaced": "says",
    "RULES": "verdict",
    "Rule": "verdict",
    "Signal": "verdict",
    "judge": "verdict",
    "WatchFindings": "watch",
    "WatchList": "watch",
    "builtin_watch_list": "watch",
    "measure_watch": "watch",
    "read_watch_list": "watch",
    "LayerUpdate": "weights",
    "WeightFindings": "weights",
    "measure_weights": "weights",
}

__all__ = [
    "RULES",
    "BankComparison",
    "ChangeFindings",
    "Inspection",
    "LayerUpdate",
    "LostFact",
    "NeutralFindings",
    "Rule",
    "Signal",
    "SurfacedName",
    "WatchFindings",
    "WatchList",
    "WeightFindings",
    "audit_section",
    "builtin_watch_list",
    "compare_with_bank",
    "inspect",
    "inspect_loaded",
    "judge",
    "measure_changes",
    "measure_neutral",
    "measure_watch",
    "measure_weights",
    "read_watch_list",
    "surfaced",
    "write_inspection",
]

__getattr__, __dir__ = attach(__name__, _MODULE_OF)
