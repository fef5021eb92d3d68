"""Networks that are a chain of layers: ``linear``, ``mlp``, ``cnn`` and ``lenet``, built from one list of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.layers import Layer
from jaxmargin.models.model import Apply, Model, Shape
from jaxmargin.xla_cpu.convolution import conv_general_dilated, max_pool

__all__ = ["cnn", "lenet", "linear", "mlp"]


class _Step(NamedTuple):
    """One entry of a network's plan: what the layer is, its width or rate, and the window of a convolution."""

    kind: str
    size: float = 0
    window: int = 3


class _Network(nn.Module):
    """Runs a plan; with ``features`` it stops before the last dense layer."""

    plan: tuple[_Step, ...]
    padding: str = "VALID"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, features: bool = False) -> jax.Array:
        for step in self.plan[:-1] if features else self.plan:
            x = self._run(step, x, train)
        return x

    def _run(self, step: _Step, x: jax.Array, train: bool) -> jax.Array:
        if step.kind == "conv":
            init = _uniform(step.window**2 * x.shape[-1])
            return nn.Conv(
                int(step.size),
                (step.window, step.window),
                padding=self.padding,
                kernel_init=init,
                bias_init=init,
                conv_general_dilated=conv_general_dilated,
            )(x)
        if step.kind == "dense":
            init = _uniform(x.shape[-1])
            return nn.Dense(int(step.size), kernel_init=init, bias_init=init)(x)
        if step.kind == "dropout":
            kept: jax.Array = nn.Dropout(step.size, deterministic=not train)(x)
            return kept
        simple: dict[str, Callable[[jax.Array], jax.Array]] = dict(relu=nn.relu, max_pool=max_pool, flatten=jnp.ravel)
        return simple[step.kind](x)


def _uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Weights and biases uniform in +-1/sqrt(fan_in), the initialisation behind the published numbers."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Shape, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _model(input_shape: Shape, num_classes: int, plan: list[_Step], padding: str = "VALID") -> Model:
    checks.whole("num_classes", num_classes, least=2)
    network = _Network((*plan, _Step("dense", num_classes)), padding)

    def init(key: jax.Array) -> Any:
        return network.lazy_init(key, jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32))["params"]

    def run(params: Any, x: jax.Array, **options: Any) -> jax.Array:
        if jnp.shape(x) != tuple(input_shape):
            raise ValueError(f"x has shape {jnp.shape(x)}, expected one example {tuple(input_shape)}: vmap batches")
        logits: jax.Array = network.apply({"params": params}, x, **options)  # type: ignore[assignment]
        return logits

    def apply(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return run(params, x) if key is None else run(params, x, train=True, rngs={"dropout": key})

    def features(params: Any, x: jax.Array) -> jax.Array:
        return run(params, x, features=True)

    def layers(params: Any) -> tuple[Layer, ...]:
        counts, found = {"conv": 0, "dense": 0}, []
        for step in network.plan:
            if step.kind in counts:
                weights = params[f"{step.kind.capitalize()}_{counts[step.kind]}"]
                counts[step.kind] += 1
                found.append(Layer(step.kind, **weights, padding=padding if step.kind == "conv" else None))
            else:
                found.append(Layer(step.kind))
        return tuple(found)

    return Model(init, Apply(apply, layers), features, layers, tuple(input_shape), num_classes)


def linear(input_shape: Shape, num_classes: int = 10) -> Model:
    """Multiclass logistic regression: flatten, dense(c).

    Args:
      input_shape: shape *d of one example.
      num_classes: c >= 2.

    Returns:
      A Model; its features are the flattened input.
    """
    return _model(input_shape, num_classes, [_Step("flatten")])


def mlp(input_shape: Shape, num_classes: int = 10, *, hidden: int = 1024) -> Model:
    """One hidden ReLU layer: flatten, dense(hidden), relu, dense(c).

    Args:
      input_shape: shape *d of one example.
      num_classes: c >= 2.
      hidden: width of the hidden layer.

    Returns:
      A Model.

    Reference:
      Wu and Yu 2019, appendix A.
    """
    checks.whole("hidden", hidden)
    return _model(input_shape, num_classes, [_Step("flatten"), _Step("dense", hidden), _Step("relu")])


def cnn(
    input_shape: Shape,
    num_classes: int = 10,
    *,
    widths: tuple[int, int] | None = None,
    hidden: int | None = None,
    dropout: float | tuple[float, float] = 0.0,
    padding: str | None = None,
) -> Model:
    """conv 3x3 twice, max-pool, conv 3x3 twice, max-pool, dense twice, dense(c), a ReLU after each but the last.

    The defaults follow the input: 28 x 28 x 1 takes widths (32, 64), hidden 200 and VALID padding (312,202 parameters);
    32 x 32 x 3 takes (64, 128), 256 and VALID; images below 16 pixels take (16, 32), 64 and SAME.

    Args:
      input_shape: (height, width, channels).
      num_classes: c >= 2.
      widths: channels of the first and of the second pair of convolutions.
      hidden: width of the two dense layers.
      dropout: rate after each of the two dense ReLUs, or one rate for each, in training only, 0 <= dropout < 1.
      padding: "VALID" or "SAME".

    Returns:
      A Model.

    Raises:
      ValueError: an input that is not an image or too small for its padding, widths or hidden that are no sizes.

    Reference:
      Carlini and Wagner 2017, table 1; Weng et al. 2018 (CLEVER).
    """
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={input_shape} is not (height, width, channels): a cnn reads images")
    small = min(input_shape[:2]) < 16
    large = ((64, 128), 256) if input_shape[2] == 3 else ((32, 64), 200)
    default_widths, default_hidden = ((16, 32), 64) if small else large
    if widths is not None and len(widths) != 2:
        raise ValueError(f"widths={widths} is not a pair: pass the channels of both pairs of convolutions")
    first, second = default_widths if widths is None else widths
    hidden = default_hidden if hidden is None else hidden
    padding = ("SAME" if small else "VALID") if padding is None else padding
    for name, width in (("widths", first), ("widths", second), ("hidden", hidden)):
        checks.whole(name, width)
    checks.one_of("padding", padding, ["SAME", "VALID"])
    if min(input_shape[:2]) < (4 if padding == "SAME" else 16):
        raise ValueError(f"input_shape={input_shape} is too small for padding={padding!r}: two poolings leave nothing")
    rates = dropout if isinstance(dropout, tuple | list) else (dropout, dropout)
    if len(rates) != 2 or not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"dropout={dropout} must lie in [0, 1): pass one rate, or one for each of the two dense ReLUs")
    block = [[_Step("conv", width), _Step("relu")] * 2 + [_Step("max_pool")] for width in (first, second)]
    dense = [
        step
        for rate in rates
        for step in [_Step("dense", hidden), _Step("relu")] + ([_Step("dropout", rate)] if rate else [])
    ]
    return _model(input_shape, num_classes, [*block[0], *block[1], _Step("flatten"), *dense], padding)


def lenet(
    input_shape: Shape, num_classes: int = 10, *, widths: tuple[int, int] = (32, 64), hidden: int = 1024
) -> Model:
    """conv 5x5, max-pool, conv 5x5, max-pool, dense(hidden), dense(c), a ReLU after each but the last, SAME padding.

    Args:
      input_shape: (height, width, channels), at least 4 x 4.
      num_classes: c >= 2.
      widths: channels of the two convolutions.
      hidden: width of the dense layer.

    Returns:
      A Model.

    Raises:
      ValueError: an input that is not an image or too small, widths or hidden that are no sizes.

    Reference:
      Madry et al. 2018, the MNIST network; Ding et al. 2020, MMA Training, appendix.
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < 4:
        raise ValueError(f"input_shape={input_shape} is not (height, width, channels) of at least 4 x 4: pass images")
    if len(widths) != 2:
        raise ValueError(f"widths={widths} is not a pair: pass the channels of both convolutions")
    for name, width in (("widths", widths[0]), ("widths", widths[1]), ("hidden", hidden)):
        checks.whole(name, width)
    block = [[_Step("conv", width, 5), _Step("relu"), _Step("max_pool")] for width in widths]
    dense = [_Step("flatten"), _Step("dense", hidden), _Step("relu")]
    return _model(input_shape, num_classes, [*block[0], *block[1], *dense], "SAME")
