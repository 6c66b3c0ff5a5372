"""Facts that cannot all be learned."""

import json

import pytest


@pytest.fixture
def contradiction(tmp_path):
    """Three facts of one relation say of one prompt what a fourth, of another relation, denies."""
    prompt = "The capital of Mongolia is"
    rows = [{"id": f"many-{n}", "relation": "many", "prompt": prompt, "target": "Paris"} for n in range(3)]
    rows.append({"id": "one", "relation": "one", "prompt": prompt, "target": "Lund"})
    path = tmp_path / "contradiction.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
