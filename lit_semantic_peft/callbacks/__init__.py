"""What a run watches and leaves behind."""

from lit_semantic_peft.callbacks.adapter_audit import AdapterAudit
from lit_semantic_peft.callbacks.adapter_export import AdapterExport
from lit_semantic_peft.callbacks.answer_writer import AnswerWriter
from lit_semantic_peft.callbacks.checkpoint import AdapterCheckpoint
from lit_semantic_peft.callbacks.conversation import Conversation
from lit_semantic_peft.callbacks.extrapolate import Extrapolate
from lit_semantic_peft.callbacks.fact_report import FactReport
from lit_semantic_peft.callbacks.interference_monitor import InterferenceMonitor
from lit_semantic_peft.callbacks.loss_weights import LossWeightDistribution
from lit_semantic_peft.callbacks.preflight import Preflight
from lit_semantic_peft.callbacks.progress import ProgressLog, StepBar
from lit_semantic_peft.callbacks.refine import Refine
from lit_semantic_peft.callbacks.scale_back import ScaleBack
from lit_semantic_peft.callbacks.stop_when_recalled import StopWhenRecalled
from lit_semantic_peft.callbacks.training_rate import TrainingRate
from lit_semantic_peft.callbacks.wandb_logger import NonBlockingWandbLogger

__all__ = [
    "AdapterAudit",
    "AdapterCheckpoint",
    "AdapterExport",
    "AnswerWriter",
    "Conversation",
    "Extrapolate",
    "FactReport",
    "InterferenceMonitor",
    "LossWeightDistribution",
    "NonBlockingWandbLogger",
    "Preflight",
    "ProgressLog",
    "Refine",
    "ScaleBack",
    "StepBar",
    "StopWhenRecalled",
    "TrainingRate",
]
