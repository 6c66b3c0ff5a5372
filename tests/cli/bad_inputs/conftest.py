"""What the tables of input that cannot be used have in common."""

import sys
from collections.abc import Callable

import pytest

from fixtures.bad_inputs import BadInput, Place, refuse


@pytest.fixture
def refused(tiny_model, facts_file, capsys, monkeypatch) -> Callable[[BadInput], str]:
    """Makes the call of a case, checks how it is refused, and returns the message."""
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])
    return lambda case: refuse(case, Place(tiny_model, monkeypatch), capsys)
