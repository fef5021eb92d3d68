"""Crops and flips held against the list of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin.objectives.augmentation import crop_and_flip

pytestmark = pytest.mark.hurried

PADDING = 2
PIXELS = np.random.default_rng(0).permutation(60).reshape(6, 5, 2) + 1  # no two alike, none 0 as the border


def all_crops(image, padding, mode="constant"):
    """{bytes: (top, left, flipped)} of every crop."""
    h, w, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
    found = {}
    for top, left in np.ndindex(2 * padding + 1, 2 * padding + 1):
        crop = padded[top : top + h, left : left + w]
        found[crop.tobytes()] = top, left, False
        found[crop[:, ::-1].tobytes()] = top, left, True
    return found


def draw(image, n, padding=PADDING, seed=0, **options):
    keys = jax.random.split(jax.random.key(seed), n)
    return np.asarray(jax.jit(jax.vmap(lambda key: crop_and_flip(key, image, padding=padding, **options)))(keys))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, jnp.bfloat16, bool])
def test_each_output_is_a_possible_crop_of_the_same_type(dtype):
    image = (PIXELS % 3 > 0).astype(bool) if dtype is bool else PIXELS.astype(dtype)
    outputs = draw(image, 50)
    assert outputs.dtype == image.dtype
    assert outputs.shape == (50, *image.shape)
    crops = all_crops(image, PADDING)
    assert all(output.tobytes() in crops for output in outputs)


def test_the_padding_may_mirror_the_image():
    image = PIXELS.astype(np.uint8)
    mirrored, zeros = all_crops(image, PADDING, "reflect"), all_crops(image, PADDING)
    outputs = {output.tobytes() for output in draw(image, 1000, mode="reflect")}
    assert outputs <= set(mirrored) and len(outputs) == len(mirrored)
    assert len(outputs & set(zeros)) == 2  # what is not shifted


@pytest.mark.parametrize("padding", [1, 2])
def test_all_crops_and_both_flips_are_equally_likely(padding):
    image, kinds, n = PIXELS.astype(np.uint8), (2 * padding + 1) ** 2 * 2, 4000
    crops = all_crops(image, padding)
    assert len(crops) == kinds
    counts = dict.fromkeys(crops.values(), 0)
    for output in draw(image, n, padding):
        counts[crops[output.tobytes()]] += 1
    expected = n / kinds
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert min(counts.values()) > 0
    assert chi_squared < (kinds - 1) + 5 * np.sqrt(2 * (kinds - 1))


def test_the_standard_padding_is_four():
    image = PIXELS.astype(np.float32)
    found = {all_crops(image, 4).get(output.tobytes()) for output in draw(image, 2000, padding=4)}
    rows, columns = ({place[axis] for place in found} for axis in (0, 1))
    assert rows == columns == set(range(9))
    keys = jax.random.split(jax.random.key(0), 2000)[:3]
    np.testing.assert_array_equal(jax.vmap(crop_and_flip, (0, None))(keys, image), draw(image, 2000, padding=4)[:3])


def test_a_crop_is_a_function_of_its_key():
    image = jnp.asarray(PIXELS, jnp.float32)
    first, again, other = (crop_and_flip(jax.random.key(seed), image) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_batch_is_cropped_image_by_image():
    images = np.random.default_rng(1).integers(0, 256, (6, 6, 5, 2), np.uint8)
    keys = jax.random.split(jax.random.key(0), 6)
    batch = np.asarray(jax.jit(jax.vmap(crop_and_flip))(keys, images))
    for key, image, output in zip(keys, images, batch, strict=True):
        np.testing.assert_array_equal(crop_and_flip(key, image), output)
    places = {all_crops(image, 4)[output.tobytes()] for image, output in zip(images, batch, strict=True)}
    assert len(places) > 1


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4, 3), (16,), ()])
def test_anything_but_one_image_is_refused(shape, key):
    with pytest.raises(ValueError, match=r"image has shape \(.*expected one image \[h, w, channels\]: vmap"):
        crop_and_flip(key, jnp.zeros(shape))


@pytest.mark.parametrize("padding", [0, -1, 1.5, True])
def test_a_padding_of_nothing_is_refused(padding, key):
    with pytest.raises(ValueError, match=rf"padding={padding} must be a whole number of at least 1"):
        crop_and_flip(key, jnp.zeros((4, 4, 1)), padding=padding)


def test_an_unknown_padding_is_refused(key):
    with pytest.raises(ValueError, match="mode='edge' is unknown: choose from constant, reflect"):
        crop_and_flip(key, jnp.zeros((4, 4, 1)), mode="edge")
