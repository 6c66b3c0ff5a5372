"""Metrics whose results keep their shapes."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import Size, Tensor
from torchmetrics import Metric
from typing_extensions import override


class ShapedMetric(Metric):
    """A metric that keeps the shapes of what `compute` returns. Torchmetrics squeezes one-element tensors to scalars.

    For a single fact a per-fact result `(1,)` would become a scalar, and all code that reads rows would need a second
    branch. `compute` may return a tensor or a dictionary of tensors. Values that were not measured are NaN, without a
    warning: a process may well have no fact.
    """

    full_state_update = False
    is_differentiable = False

    @override
    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        # Stored in the instance, like torchmetrics' cached result, so that a copy has both. When a copy calls this, it
        # already has its own.
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
