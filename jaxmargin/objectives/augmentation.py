"""Random crops and flips of one image, for training: ``vmap`` them over the keys and images of a batch.

>>> import jax, jax.numpy as jnp
>>> images = jnp.zeros((5, 32, 32, 3), jnp.uint8)
>>> keys = jax.random.split(jax.random.key(0), 5)
>>> jax.vmap(crop_and_flip)(keys, images).shape
(5, 32, 32, 3)
"""

import jax
import jax.numpy as jnp

from jaxmargin import checks

__all__ = ["crop_and_flip"]


def crop_and_flip(key: jax.Array, image: jax.Array, *, padding: int = 4, mode: str = "constant") -> jax.Array:
    """A random crop of the padded image, as large as the image, flipped left to right in one case of two.

    All (2 padding + 1)^2 positions of the crop are equally likely.

    Args:
      key: random key.
      image: [h, w, channels] of any dtype.
      padding: pixels added on each side.
      mode: what they are: "constant" for zeros, or "reflect" for the image mirrored at its edge.

    Returns:
      [h, w, channels] of the same dtype.

    Raises:
      ValueError: an image without these three axes, a padding that is no whole number of at least 1, an unknown mode.

    Reference:
      He et al. 2016, section 4.2, pad with zeros; the released code of Ding et al. 2020, MMA Training, reflects.
    """
    checks.whole("padding", padding)
    checks.one_of("mode", mode, ("constant", "reflect"))
    if jnp.ndim(image) != 3:
        raise ValueError(f"image has shape {jnp.shape(image)}, expected one image [h, w, channels]: vmap batches")
    image = jnp.asarray(image)
    place, side = jax.random.split(key)
    top, left = jax.random.randint(place, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)  # [h + 2 padding, ...]
    crop = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    return jnp.where(jax.random.bernoulli(side), crop[:, ::-1], crop)
