"""Teach a language model facts with PEFT: semantic filtering, distance-weighted loss, interference per fact."""
