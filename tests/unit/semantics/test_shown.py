"""Distances, filters, weightings and features are shown as they are written in Python."""

import inspect

import pytest
from lit_semantic_peft import semantics
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import (
    Band,
    BandFilter,
    Distance,
    FactFilter,
    Feature,
    Online,
    PerRelation,
    Proximity,
    TokenDistance,
    TokenWeighting,
    Weighting,
)

BASES = (Distance, FactFilter, Weighting, TokenWeighting, Feature)


def made_without_arguments():
    for name in sorted(semantics.__all__):
        one = getattr(semantics, name)
        if inspect.isclass(one) and issubclass(one, BASES) and not inspect.isabstract(one):
            parameters = inspect.signature(one).parameters.values()
            if all(parameter.default is not inspect.Parameter.empty for parameter in parameters):
                yield one


@pytest.mark.parametrize("kind", list(made_without_arguments()), ids=lambda kind: kind.__name__)
def test_what_is_shown_makes_the_same(kind):
    try:
        shown = repr(kind())
    except InputError:
        pytest.skip("needs one of its arguments")
    assert repr(eval(shown, dict(vars(semantics)))) == shown
    for name in inspect.signature(kind).parameters:
        assert f"{name}=" in shown
    assert shown.startswith(f"{kind.__name__}(")


def test_settings_that_were_given_are_shown():
    assert repr(BandFilter(min_quantile=0.1, max_quantile=0.9)).startswith("BandFilter(")
    assert "min_quantile=0.1" in repr(BandFilter(min_quantile=0.1))
    assert repr(Online(Band(center=0.9, width=0.3))) == f"Online(weighting={Band(center=0.9, width=0.3)!r})"
    assert "filter=" in repr(PerRelation(BandFilter(min_quantile=0.1)))
    assert repr(Proximity(2.0)) in repr(TokenDistance(Proximity(2.0)))
