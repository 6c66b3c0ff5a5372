"""Teach a language model facts with PEFT: semantic filtering, distance-weighted loss, interference per fact.

Importing this package loads nothing heavy: each name below is loaded when it is first used.
"""

import logging
from typing import TYPE_CHECKING

from lit_semantic_peft.lazy import attach

# bitsandbytes, which peft imports where it is installed, asks for a package that nobody needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from lit_semantic_peft import (
        adapters,
        audit,
        callbacks,
        data,
        evaluation,
        facts,
        interference,
        metrics,
        models,
        reports,
        semantics,
        tokens,
        training,
    )
    from lit_semantic_peft.audit import inspect
    from lit_semantic_peft.callbacks import (
        AdapterExport,
        Extrapolate,
        FactReport,
        InterferenceMonitor,
        Refine,
        ScaleBack,
    )
    from lit_semantic_peft.data import (
        BatchPlan,
        EncodingPlan,
        FormsPlan,
        KnowledgeDataModule,
        SelectionPlan,
        interference_matrix,
        score,
    )
    from lit_semantic_peft.errors import InputError
    from lit_semantic_peft.evaluation import EvaluationPlan
    from lit_semantic_peft.facts import Fact, read_facts, write_facts
    from lit_semantic_peft.models import BaseModel, load_gated
    from lit_semantic_peft.reports import RunFolder, build_report, compare_runs
    from lit_semantic_peft.reports.export import export_run
    from lit_semantic_peft.training import (
        ConflictAwareBatching,
        GradientSurgery,
        InterferenceWeighting,
        SemanticPeftModule,
        choose_recipe,
    )

    __version__: str

_STAGES = (
    "adapters",
    "audit",
    "callbacks",
    "data",
    "evaluation",
    "facts",
    "interference",
    "metrics",
    "models",
    "reports",
    "semantics",
    "tokens",
    "training",
)
_MODULE_OF = {
    "AdapterExport": "callbacks",
    "BaseModel": "models",
    "BatchPlan": "data",
    "ConflictAwareBatching": "training",
    "EncodingPlan": "data",
    "EvaluationPlan": "evaluation",
    "Extrapolate": "callbacks",
    "Fact": "facts",
    "FactReport": "callbacks",
    "FormsPlan": "data",
    "GradientSurgery": "training",
    "InputError": "errors",
    "InterferenceMonitor": "callbacks",
    "InterferenceWeighting": "training",
    "KnowledgeDataModule": "data",
    "Refine": "callbacks",
    "RunFolder": "reports",
    "ScaleBack": "callbacks",
    "SelectionPlan": "data",
    "SemanticPeftModule": "training",
    "build_report": "reports",
    "choose_recipe": "training",
    "compare_runs": "reports",
    "export_run": "reports.export",
    "inspect": "audit",
    "interference_matrix": "data",
    "load_gated": "models",
    "read_facts": "facts",
    "score": "data",
    "write_facts": "facts",
}

__all__ = [
    "AdapterExport",
    "BaseModel",
    "BatchPlan",
    "ConflictAwareBatching",
    "EncodingPlan",
    "EvaluationPlan",
    "Extrapolate",
    "Fact",
    "FactReport",
    "FormsPlan",
    "GradientSurgery",
    "InputError",
    "InterferenceMonitor",
    "InterferenceWeighting",
    "KnowledgeDataModule",
    "Refine",
    "RunFolder",
    "ScaleBack",
    "SelectionPlan",
    "SemanticPeftModule",
    "__version__",
    "adapters",
    "audit",
    "build_report",
    "callbacks",
    "choose_recipe",
    "compare_runs",
    "data",
    "evaluation",
    "export_run",
    "facts",
    "inspect",
    "interference",
    "interference_matrix",
    "load_gated",
    "metrics",
    "models",
    "read_facts",
    "reports",
    "score",
    "semantics",
    "tokens",
    "training",
    "write_facts",
]


def _version() -> str:
    from importlib.metadata import version

    return version("lit-semantic-peft")


__getattr__, __dir__ = attach(__name__, _MODULE_OF, submodules=_STAGES, computed={"__version__": _version})
