"""Metrics whose results keep their shapes."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import Size, Tensor
from torchmetrics import Metric


class ShapedMetric(Metric):
    """A metric that returns what `compute` returns: torchmetrics turns every one-element tensor into a scalar.

    For a single fact a per-fact result `(1,)` would become a scalar, and all code that reads rows would need a second
    branch. `compute` may return a tensor or a dictionary of tensors. Without any measurement it gives NaN for what was
    not measured, which is a result and no reason to warn: a process may well have no fact.
    """

    full_state_update = False
    is_differentiable = False

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        # In the instance, beside torchmetrics' cached result, so that a copy has both; a copy comes here with its own.
        shapes: dict[str, Size] = self.__dict__.setdefault("_result_shapes", {})

        @functools.wraps(compute)
        def noted(*args: Any, **kwargs: Any) -> Any:
            value = compute(*args, **kwargs)
            shapes.update({name: tensor.shape for name, tensor in _named(value).items()})
            return value

        wrapped = super()._wrap_compute(noted)

        @functools.wraps(compute)
        def shaped(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
                value = wrapped(*args, **kwargs)
            restored = {name: tensor.reshape(shapes[name]) for name, tensor in _named(value).items()}
            return restored[""] if isinstance(value, Tensor) else restored

        return shaped


def _named(value: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return {"": value} if isinstance(value, Tensor) else value
