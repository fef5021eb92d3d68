"""Wide residual networks: ``wide_resnet``, whose batch normalisation averages over a vmapped axis while it trains.

>>> import jax
>>> model = wide_resnet((32, 32, 3))
>>> shapes = jax.eval_shape(model.init, jax.random.key(0))
>>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
5849050
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmargin import checks
from jaxmargin.models.model import BATCH, Apply, Model, Shape
from jaxmargin.xla_cpu.convolution import conv_general_dilated

__all__ = ["wide_resnet"]

_STEM = 16  # channels of the first convolution, and of the first group at width 1


class _Block(nn.Module):
    """Batch norm, relu, conv 3x3, twice, added to the input; a conv 1x1 leads past them where the shape changes."""

    channels: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        active = _activate(x, train, self.dtype)
        inner = _activate(_conv(active, self.channels, 3, self.stride, self.dtype), train, self.dtype)
        outer = _conv(inner, self.channels, 3, 1, self.dtype)
        if x.shape[-1] != self.channels or self.stride > 1:
            x = _conv(active, self.channels, 1, self.stride, self.dtype)
        return x + outer


class _Network(nn.Module):
    """The whole network on one image; with ``features`` it stops before the dense layer."""

    num_classes: int
    blocks: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, features: bool = False) -> jax.Array:
        precise = jnp.result_type(x, jnp.float32)
        x = _conv(_standardise(x.astype(precise)), _STEM, 3, 1, self.dtype)
        for group in range(3):
            for block in range(self.blocks):
                stride = 2 if group > 0 and block == 0 else 1
                name = f"Block_{group}_{block}"
                x = _Block(_STEM * self.width * 2**group, stride, self.dtype, name=name)(x, train=train)
        x = _activate(x, train, self.dtype).astype(precise).mean((0, 1))  # [64 width]
        if features:
            return x
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))(x)


def _conv(x: jax.Array, channels: int, window: int, stride: int, dtype: Any) -> jax.Array:
    """Padded by zeros on both sides alike, weights normal of variance 2 / (window^2 channels)."""
    return nn.Conv(
        channels,
        (window, window),
        stride,
        padding=window // 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
    )(x)


def _activate(x: jax.Array, train: bool, dtype: Any) -> jax.Array:
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=BATCH, dtype=dtype)
    return nn.relu(norm(x))


def _standardise(x: jax.Array) -> jax.Array:
    """The image with mean 0 and deviation 1; deviations below 1/sqrt(size) count as that."""
    x = x - x.mean()
    return x / jnp.sqrt(jnp.maximum(jnp.mean(x**2), 1 / x.size))  # the root of the maximum: finite slopes at constants


def _in_batch() -> None:
    """Refuses a training pass of an example without its batch."""
    try:
        jax.lax.psum(1, BATCH)
    except NameError:
        raise ValueError(
            "a key asks for a training pass, which normalises over the batch: vmap it with axis_name=BATCH, or pass no"
            " key to measure"
        ) from None


def wide_resnet(
    input_shape: Shape, num_classes: int = 10, *, depth: int = 28, width: int = 4, dtype: Any = None
) -> Model:
    """Wide residual network WRN-depth-width with pre-activation blocks; it standardises each image by itself first.

    conv 3x3 of 16 channels, three groups of (depth - 4) / 6 blocks of 16, 32 and 64 times ``width`` channels with
    strides 1, 2 and 2, batch norm, relu, global average pooling, dense(c); no dropout. The defaults on 32 x 32 x 3 are
    the WRN-28-4 of MMA training (5,849,050 parameters). The dense layer starts as in that paper's code: weights uniform
    in +-1/sqrt(fan_in), bias 0.

    The parameters are flax's variables, {"params": ..., "batch_stats": ...}. Without a key the network normalises by
    its running statistics. A training pass, with a key (unused: nothing here is random), normalises by the batch and
    runs where that is a mapped axis: ``jax.vmap(model.apply, (None, 0, None), axis_name=BATCH)(params, xs, key)``.
    ``model.apply.observe`` under the same vmap also gives the parameters with their running statistics moved by a tenth
    of the way to the batch's, alike for the whole batch: ``out_axes=(0, None)``. Slopes with respect to the statistics
    are zero in training; weight decay must leave them alone too.

    Args:
      input_shape: (height, width, channels), both sides multiples of 4 and at least 8.
      num_classes: c >= 2.
      depth: 6 n + 4, the number of convolutions and dense layers on the longest path (n blocks in each group).
      width: factor of the channels.
      dtype: floating-point type to compute in, such as ``jnp.bfloat16`` on accelerators; parameters, statistics, the
        standardisation and the dense layer stay in float32. None computes in the type of the input, float32 at least.

    Returns:
      A Model without ``layers``; its features are the 64 * width pooled channels.

    Raises:
      ValueError: an input that is not an image or of unfit sides, a depth that is not 6 n + 4, a width or a dtype that
        is none.

    Reference:
      Zagoruyko and Komodakis 2016; Ding et al. 2020, MMA Training, appendix.
    """
    checks.whole("num_classes", num_classes, least=2)
    checks.whole("width", width)
    checks.whole("depth", depth)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth={depth} is not 6 n + 4: pass 10, 16, 22, 28, ...")
    if len(input_shape) != 3 or any(side < 8 or side % 4 for side in input_shape[:2]):
        raise ValueError(
            f"input_shape={input_shape} is not (height, width, channels) of at least 8 x 8, sides multiples of 4: crop"
            " or pad the images"
        )
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype={dtype!r} is no floating-point type: pass one such as jnp.bfloat16, or None")
    return _model(tuple(input_shape), _Network(num_classes, (depth - 4) // 6, width, dtype))


def _model(input_shape: Shape, network: _Network) -> Model:
    def init(key: jax.Array) -> Any:
        return network.lazy_init(key, jax.ShapeDtypeStruct(input_shape, jnp.float32))

    def measure(params: Any, x: jax.Array, **options: Any) -> Any:
        if jnp.shape(x) != input_shape:
            raise ValueError(f"x has shape {jnp.shape(x)}, expected one example {input_shape}: vmap batches")
        return network.apply(params, jnp.asarray(x), **options)

    def observe(params: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        _in_batch()
        logits, moved = measure(params, x, train=True, mutable=["batch_stats"])
        return logits, {**params, **moved}

    def apply(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        logits: jax.Array = measure(params, x) if key is None else observe(params, x, key)[0]
        return logits

    def features(params: Any, x: jax.Array) -> jax.Array:
        found: jax.Array = measure(params, x, features=True)
        return found

    return Model(init, Apply(apply, observe=observe), features, None, input_shape, network.num_classes)
