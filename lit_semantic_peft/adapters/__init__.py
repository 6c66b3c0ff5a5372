"""Adapters of papers, beside those of peft; peft's own functions handle them once this is imported."""

from lit_semantic_peft.adapters.flora import FLoRAConfig, as_lora

__all__ = ["FLoRAConfig", "as_lora"]
