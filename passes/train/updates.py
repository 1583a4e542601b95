"""How each optimizer moves a tensor, in standard operators.

torch's definitions; ONNX's own differ in their scalars only. Scalars of a step are computed in
float64: 1 - b^t cancels in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.train.arithmetic import Arithmetic

Moved = tuple[ir.Value, dict[str, ir.Value]]
"""A tensor's new value, and its new state by slot."""


@dataclass(frozen=True)
class Moving:
    """What one step knows of a tensor.

    Attributes:
        name: Base of the names of what is emitted for it.
        value: The tensor.
        gradient: The gradient of the loss with respect to it.
        slots: The state that the optimizer keeps of it, by slot.
        decay: Its weight decay.
    """

    name: str
    value: ir.Value
    gradient: ir.Value
    slots: Mapping[str, ir.Value]
    decay: float = 0.0

    def regularized(self, a: Arithmetic) -> ir.Value:
        """The gradient of the loss plus ``decay / 2 |value|^2``."""
        if not self.decay:
            return self.gradient
        pull = a.call("Mul", self.value, self.decay, name=f"{self.name}_pull")
        return a.call("Add", self.gradient, pull, name=f"{self.name}_regularized")

    def minus(self, a: Arithmetic, direction: ir.Value, rate: ir.Value) -> ir.Value:
        """The value a step of length ``rate`` further down ``direction``."""
        change = a.call("Mul", direction, rate, name=f"{self.name}_change")
        return a.call("Sub", self.value, change, name=f"{self.name}_moved")


class Update(ABC):
    """One optimizer."""

    @property
    @abstractmethod
    def slots(self) -> Mapping[str, float]:
        """The state that it keeps of each tensor besides its value, with the first values."""

    @abstractmethod
    def scalars(self, a: Arithmetic, rate: ir.Value, step: ir.Value) -> dict[str, ir.Value]:
        """Emit what all tensors share: from the learning rate, and the step's int64 number from 1.

        Returns:
            Scalars of any float dtype; ``move`` wants them in the dtype of its tensor.
        """

    @abstractmethod
    def move(self, a: Arithmetic, tensor: Moving, scalars: Mapping[str, ir.Value]) -> Moved:
        """Emit one step of one tensor."""


@dataclass(frozen=True)
class Sgd(Update):
    """``p - lr g``, or with momentum ``p - lr v``, where ``v = momentum v + share g``.

    Attributes:
        momentum: How much of v is kept; None for plain descent.
        share: The part of the gradient that enters v, but for the first step, where it is 1;
            torch's 1 - dampening.
        nesterov: Whether to step down ``g + momentum v``.
    """

    momentum: float | None = None
    share: float = 1.0
    nesterov: bool = False

    @property
    def slots(self) -> Mapping[str, float]:
        """See ``Update``."""
        return {} if self.momentum is None else {"momentum": 0.0}

    def scalars(self, a: Arithmetic, rate: ir.Value, step: ir.Value) -> dict[str, ir.Value]:
        """See ``Update``."""
        if self.momentum is None or self.share == 1:
            return {"rate": rate}
        later = a.call("Greater", step, 1, name="later_step", dtype=ir.DataType.BOOL)
        share = a.where(later, self.share, 1.0, dtype=ir.DataType.DOUBLE, name="share")
        return {"rate": rate, "share": share}

    def move(self, a: Arithmetic, tensor: Moving, scalars: Mapping[str, ir.Value]) -> Moved:
        """See ``Update``."""
        gradient = tensor.regularized(a)
        if self.momentum is None:
            return tensor.minus(a, gradient, scalars["rate"]), {}
        name, entering = tensor.name, gradient
        if "share" in scalars:
            entering = a.call("Mul", gradient, scalars["share"], name=f"{name}_entering")
        kept = a.call("Mul", tensor.slots["momentum"], self.momentum, name=f"{name}_kept")
        velocity = direction = a.call("Add", kept, entering, name=f"{name}_velocity")
        if self.nesterov:
            ahead = a.call("Mul", velocity, self.momentum, name=f"{name}_ahead")
            direction = a.call("Add", gradient, ahead, name=f"{name}_direction")
        return tensor.minus(a, direction, scalars["rate"]), {"momentum": velocity}


@dataclass(frozen=True)
class Adam(Update):
    """``p - lr m^ / (sqrt(v^) + epsilon)``, with m^ = m / (1 - beta1^t) and v^ = v / (1 - beta2^t).

    Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015. Emitted in their second form,
    with the corrections in the scalars: ``p - lr' m / (sqrt(v) + epsilon')``, where
    ``lr' = lr sqrt(1 - beta2^t) / (1 - beta1^t)`` and ``epsilon' = epsilon sqrt(1 - beta2^t)``.

    Attributes:
        beta1: How much of the mean gradient m is kept.
        beta2: How much of the mean squared gradient v is kept.
        epsilon: Added to the root.
        decoupled: The decay that shrinks the weights by ``lr decay`` instead of entering the
            gradient (AdamW: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019);
            0 for none.
        amsgrad: Whether to divide by the largest v so far (Reddi et al., 2018).
    """

    beta1: float
    beta2: float
    epsilon: float
    decoupled: float = 0.0
    amsgrad: bool = False

    @property
    def slots(self) -> Mapping[str, float]:
        """See ``Update``."""
        return {"mean": 0.0, "square": 0.0, **({"largest": 0.0} if self.amsgrad else {})}

    def scalars(self, a: Arithmetic, rate: ir.Value, step: ir.Value) -> dict[str, ir.Value]:
        """See ``Update``."""
        rate = a.cast(rate, ir.DataType.DOUBLE)
        corrected, root = self.corrected(a, rate, step)
        epsilon = a.call("Mul", root, self.epsilon, name="epsilon")
        found = {"rate": corrected, "epsilon": epsilon}
        if self.decoupled:
            shrink = a.call("Mul", rate, self.decoupled, name="shrink")
            found["keep"] = a.call("Sub", 1.0, shrink, name="keep")
        return found

    def corrected(self, a: Arithmetic, rate: ir.Value, step: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Emit ``lr sqrt(1 - beta2^t) / (1 - beta1^t)`` and its root, of a float64 rate."""
        time = a.cast(step, ir.DataType.DOUBLE)
        powers = [
            a.call("Pow", beta, time, name=f"{name}_power")
            for beta, name in ((self.beta1, "beta1"), (self.beta2, "beta2"))
        ]
        bias, square_bias = (a.call("Sub", 1.0, power, name="bias") for power in powers)
        root = a.call("Sqrt", square_bias, name="bias_root")
        return a.call("Div", a.call("Mul", rate, root, name="rate_root"), bias, name="rate"), root

    def move(self, a: Arithmetic, tensor: Moving, scalars: Mapping[str, ir.Value]) -> Moved:
        """See ``Update``; without ``epsilon`` among the scalars it is a constant."""
        name, value = tensor.name, tensor.value
        gradient = tensor.gradient if self.decoupled else tensor.regularized(a)
        mean = self._mean(a, tensor, gradient)
        square = self._square(a, tensor, gradient)
        new = {"mean": mean, "square": square}
        if self.amsgrad:
            new["largest"] = a.call(
                "Max", tensor.slots["largest"], square, name=f"{name}_largest_square"
            )
        root = a.call("Sqrt", new.get("largest", square), name=f"{name}_root")
        epsilon = scalars.get("epsilon", self.epsilon)
        bounded = a.call("Add", root, epsilon, name=f"{name}_bounded")
        direction = a.call("Div", mean, bounded, name=f"{name}_direction")
        if self.decoupled and tensor.decay:
            value = a.call("Mul", value, scalars["keep"], name=f"{name}_shrunk")
        change = a.call("Mul", direction, scalars["rate"], name=f"{name}_change")
        return a.call("Sub", value, change, name=f"{name}_moved"), new

    def _mean(self, a: Arithmetic, tensor: Moving, gradient: ir.Value) -> ir.Value:
        mean = tensor.slots["mean"]
        off = a.call("Sub", gradient, mean, name=f"{tensor.name}_off_mean")
        step = a.call("Mul", off, 1 - self.beta1, name=f"{tensor.name}_to_mean")
        return a.call("Add", mean, step, name=f"{tensor.name}_mean")

    def _square(self, a: Arithmetic, tensor: Moving, gradient: ir.Value) -> ir.Value:
        name = tensor.name
        kept = a.call("Mul", tensor.slots["square"], self.beta2, name=f"{name}_kept_square")
        square = a.call("Mul", gradient, gradient, name=f"{name}_gradient_square")
        entering = a.call("Mul", square, 1 - self.beta2, name=f"{name}_to_square")
        return a.call("Add", kept, entering, name=f"{name}_square")


@dataclass(frozen=True)
class Adagrad(Update):
    """``p - lr' g / (sqrt(sum g^2) + epsilon)``, with ``lr' = lr / (1 + (t - 1) rate_decay)``.

    Duchi, Hazan and Singer, Adaptive Subgradient Methods for Online Learning, 2011.

    Attributes:
        epsilon: Added to the root.
        rate_decay: How fast the learning rate falls.
        initial: What the sum of squares starts from.
    """

    epsilon: float
    rate_decay: float = 0.0
    initial: float = 0.0

    @property
    def slots(self) -> Mapping[str, float]:
        """See ``Update``."""
        return {"sum": self.initial}

    def scalars(self, a: Arithmetic, rate: ir.Value, step: ir.Value) -> dict[str, ir.Value]:
        """See ``Update``."""
        if not self.rate_decay:
            return {"rate": rate}
        rate, time = a.cast(rate, ir.DataType.DOUBLE), a.cast(step, ir.DataType.DOUBLE)
        before = a.call("Sub", time, 1.0, name="steps_before")
        fall = a.call("Mul", before, self.rate_decay, name="rate_fall")
        slower = a.call("Add", fall, 1.0, name="rate_divisor")
        return {"rate": a.call("Div", rate, slower, name="rate")}

    def move(self, a: Arithmetic, tensor: Moving, scalars: Mapping[str, ir.Value]) -> Moved:
        """See ``Update``."""
        name, gradient = tensor.name, tensor.regularized(a)
        square = a.call("Mul", gradient, gradient, name=f"{name}_gradient_square")
        total = a.call("Add", tensor.slots["sum"], square, name=f"{name}_sum")
        root = a.call("Sqrt", total, name=f"{name}_root")
        bounded = a.call("Add", root, self.epsilon, name=f"{name}_bounded")
        direction = a.call("Div", gradient, bounded, name=f"{name}_direction")
        return tensor.minus(a, direction, scalars["rate"]), {"sum": total}
