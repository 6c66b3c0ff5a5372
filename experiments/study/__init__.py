"""The study: does filtering and weighting by semantic distance help? One command, one file per run.

python -m experiments.study run --setting cpu
"""
