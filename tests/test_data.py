"""Data sets: the official pixels, in the official order, whichever way they reached the disk."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import flip

from jaxmargin.lab import data

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed")
from jaxmargin.lab.data import builders, loading  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the folder ../shared/data with the real data is not here"
)
SIZES = {"mnist": (40, 12), "cifar10": (25, 7)}  # of the tiny synthetic data sets: train, test


# Synthetic official files, and a web server on this machine that serves them ------------------------------------------


def idx(array):
    """An array of bytes as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder, rng):
    truth = {}
    for split, stem, n in zip(("train", "test"), ("train", "t10k"), SIZES["mnist"], strict=True):
        images = rng.integers(0, 256, (n, 28, 28, 1), np.uint8)
        labels = rng.integers(0, 10, n, np.uint8)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[..., 0])))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
        truth[split] = images, labels
    return truth


def write_cifar(folder, rng):
    truth, batches = {}, {}
    for split, n in zip(("train", "test"), SIZES["cifar10"], strict=True):
        images, labels = rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n, np.uint8)
        rows = [
            bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels, strict=True)
        ]
        parts = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        share = n // len(parts)
        batches |= {part: b"".join(rows[i * share : (i + 1) * share]) for i, part in enumerate(parts)}
        truth[split] = images, labels
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for part, raw in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{part}.bin")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return truth


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Tiny official files at URLs of a local server, with their checksums registered; returns the arrays they hold."""
    folder, rng = tmp_path / "official", np.random.default_rng(0)
    folder.mkdir()
    truth = {"mnist": write_mnist(folder, rng), "cifar10": write_cifar(folder, rng)}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(folder) as address:
        for builder in builders.BUILDERS.values():
            urls = [f"{address}/{url.rpartition('/')[2]}" for url in builder.URLS]
            infos = {url: tfds.core.download.checksums.compute_url_info(folder / Path(url).name) for url in urls}
            monkeypatch.setattr(builder, "URLS", urls)
            monkeypatch.setattr(builder, "url_infos", infos)
        yield truth


@pytest.fixture
def folders(tmp_path):
    return {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}


@pytest.fixture
def prepared(official, folders):
    """A prepared copy of the tiny MNIST, its arrays, and nothing in the cache."""
    builders.prepare("mnist", folders["data_dir"])
    return folders["data_dir"] / "jaxmargin_mnist" / "1.0.0"


def assert_equal(dataset, truth):
    for split in ("train", "test"):
        images, labels = getattr(dataset, split)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        np.testing.assert_array_equal(images, truth[split][0])
        np.testing.assert_array_equal(labels, truth[split][1])


# Digits, names, index sets -------------------------------------------------------------------------------------------


def test_digits_are_all_there_once_and_stratified():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    digits, source = data.load("digits"), sklearn_datasets.load_digits()
    assert digits.train.images.shape == (1437, 8, 8, 1) and digits.test.images.shape == (360, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int32
    assert digits.num_classes == 10 and digits.train.images.max() == digits.scale == 16.0
    rows = [(*image.ravel().tolist(), label) for split in digits[1:3] for image, label in zip(*split, strict=True)]
    assert sorted(rows) == sorted((*x.astype(int).tolist(), y) for x, y in zip(source.data, source.target, strict=True))
    share = np.bincount(digits.test.labels) / np.bincount(source.target)
    np.testing.assert_allclose(share, 360 / 1797, atol=1 / 174)  # the smallest class has 174: within one example


def test_digits_are_split_the_same_way_each_time():
    np.testing.assert_array_equal(data.load("digits").test.images, data.load("digits").test.images)


def test_unknown_name():
    with pytest.raises(ValueError, match="name='minst' is unknown: choose from digits, mnist, cifar10"):
        data.load("minst")


def test_margin_points_are_the_papers():
    points = data.margin_points(10_000, 500)
    assert points[:4].tolist() == [9394, 898, 2398, 5906]
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    np.testing.assert_array_equal(points, np.random.choice(10_000, 500, replace=False))  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002


def test_spread_points_are_evenly_spread():
    assert data.spread_points(10_000, 1000).tolist() == list(range(0, 10_000, 10))
    assert data.spread_points(5, 9).tolist() == [0, 1, 2, 3, 4]
    gaps = np.diff([*data.spread_points(360, 50), 360])
    assert set(gaps) == {7, 8}
    with pytest.raises(ValueError, match="size=0 must be a whole number of at least 1"):
        data.spread_points(7, 0)


def test_margin_points_can_take_the_whole_split_and_no_more():
    assert sorted(data.margin_points(7, 7, seed=3)) == list(range(7))
    with pytest.raises(ValueError, match="size=8 exceeds the n=7 examples of the split: pass a size of at most 7"):
        data.margin_points(7, 8)
    with pytest.raises(ValueError, match="size=0"):
        data.margin_points(7, 0)


# Parsers -------------------------------------------------------------------------------------------------------------


def test_parse_idx_inverts_the_format():
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(builders.parse_idx(idx(array)), array)


@pytest.mark.parametrize(
    "raw", [b"", b"\x1f\x8b\x08\x00", idx(np.zeros(9, np.uint8))[:-1], idx(np.zeros(9, np.uint8))[:6]]
)
def test_parse_idx_refuses(raw):
    with pytest.raises(ValueError, match="raw .* IDX header .*download it again"):
        builders.parse_idx(raw)


def test_parse_cifar_reads_channels_first():
    rows = np.zeros((2, 3073), np.uint8)
    rows[:, 0] = 3, 9
    rows[1, 1 + 1024 + 32 * 5 + 7] = 200  # green, row 5, column 7
    images, labels = builders.parse_cifar(rows.tobytes())
    assert labels.tolist() == [3, 9] and images.shape == (2, 32, 32, 3)
    assert images[1, 5, 7, 1] == 200 and images.sum() == 200


@pytest.mark.parametrize("raw", [b"", bytes(3072), b"\x0a" + bytes(3072)])
def test_parse_cifar_refuses(raw):
    with pytest.raises(ValueError, match="raw holds .* download it again"):
        builders.parse_cifar(raw)


# Download, prepare, decode -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_downloads_and_prepares_without_tensorflow(official, folders, name):
    dataset = data.load(name, **folders)
    assert_equal(dataset, official[name])
    assert (dataset.name, dataset.num_classes, dataset.scale) == (name, 10, 255.0)
    assert "tensorflow" not in sys.modules
    assert not (folders["data_dir"] / name).exists()  # the standard name stays free


def test_next_start_needs_neither_network_nor_tfds(official, folders):
    data.load("mnist", **folders)
    code = (
        "import sys; from jaxmargin.lab import data;"
        f"d = data.load('mnist', data_dir={str(folders['data_dir'])!r}, download=False);"
        "print(int(d.train.images.sum()));"
        "assert not {'tensorflow_datasets', 'tensorflow', 'sklearn'} & set(sys.modules)"
    )
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"JAXMARGIN_CACHE": str(folders["cache_dir"]), "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == official["mnist"]["train"][0].sum(dtype=int)


def test_changed_download_is_refused(official, folders, tmp_path):
    (tmp_path / "official" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(12, np.uint8))))
    with pytest.raises(ValueError, match="wrong checksum: delete .*downloads and try again$"):
        data.load("mnist", **folders)
    assert not list(folders["data_dir"].rglob("dataset_info.json"))


def test_unregistered_download_is_refused(official, folders, monkeypatch):
    monkeypatch.setattr(builders.JaxmarginMnist, "url_infos", None)
    with pytest.raises(ValueError, match="checksum"):
        data.load("mnist", **folders)


@pytest.mark.parametrize("download", [True, False])
def test_missing_data_is_one_line_with_a_remedy(folders, monkeypatch, download):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(folders["data_dir"].parent) as address:
        pass  # closed again: nobody listens at this port
    monkeypatch.setattr(builders.JaxmarginCifar10, "URLS", [f"{address}/cifar-10-binary.tar.gz"])
    remedy = "could not be downloaded .*: connect to the network" if download else "pass download=True"
    with pytest.raises(FileNotFoundError, match=f"^cifar10 is not in .*{remedy}, or pass data_dir .*--data-dir .*TFDS"):
        data.load("cifar10", **folders, download=download)
    assert not folders["data_dir"].exists()


class Mnist(builders.JaxmarginMnist, skip_registration=True):
    """Stored as TFDS's own builder stores it: as ``mnist``, shuffled, over several shards."""

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(28, 28, 1)), "label": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)


@pytest.fixture
def standard(official, folders):
    config = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    builder = Mnist(data_dir=folders["data_dir"])
    builder.download_and_prepare(
        download_dir=folders["data_dir"] / "downloads", download_config=config, file_format="array_record"
    )
    return folders["data_dir"] / "mnist" / "1.0.0"


def test_standard_copy_is_read_in_official_order(standard, official, folders):
    stored = [row["label"] for row in tfds.builder_from_directory(standard).as_data_source(split="train")]
    assert stored != official["mnist"]["train"][1].tolist()  # TFDS did shuffle
    assert_equal(data.load("mnist", **folders, download=False), official["mnist"])


def test_standard_copy_comes_before_ours(prepared, standard, official, folders):
    data.load("mnist", **folders)
    assert [path.name for path in folders["cache_dir"].iterdir()] == ["mnist"]
    shutil.rmtree(standard)
    assert_equal(data.load("mnist", **folders), official["mnist"])
    assert sorted(path.name for path in folders["cache_dir"].iterdir()) == ["jaxmargin_mnist", "mnist"]


def test_tfrecord_copy_is_passed_over(standard, official, folders):
    info = standard / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(FileNotFoundError, match="mnist is not in .* as array_record"):
        data.load("mnist", **folders, download=False)
    assert_equal(data.load("mnist", **folders), official["mnist"])


def test_data_dir_from_the_environment(prepared, official, folders, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folders["data_dir"]))
    monkeypatch.setenv("JAXMARGIN_CACHE", str(folders["cache_dir"]))
    assert_equal(data.load("mnist", download=False), official["mnist"])


def edit_info(folder, change):
    info = json.loads((folder / "dataset_info.json").read_text())
    change(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def truncate(folder):
    shard = next(folder.glob("*-train.array_record*"))
    os.truncate(shard, shard.stat().st_size // 2)


def zero_bytes(folder):
    shard = next(folder.glob("*-train.array_record*"))
    raw = bytearray(shard.read_bytes())
    raw[5000:5050] = bytes(50)
    shard.write_bytes(raw)


DAMAGES = {
    "empty folder": (empty, FileNotFoundError, "dataset_info.json is missing"),
    "metadata cut": (lambda folder: (folder / "dataset_info.json").write_text("{"), ValueError, "is damaged"),
    "no splits": (lambda folder: edit_info(folder, lambda info: info.pop("splits")), ValueError, "is damaged"),
    "shard missing": (lambda folder: next(folder.glob("*-test.*")).unlink(), FileNotFoundError, "shards of test"),
    "shard cut": (truncate, ValueError, "cannot be read"),
    "shard overwritten": (zero_bytes, ValueError, "cannot be read"),
    "features missing": (lambda folder: (folder / "features.json").unlink(), ValueError, "cannot be read"),
    "fewer declared": (
        lambda folder: edit_info(folder, lambda info: info["splits"][0].update(shardLengths=["39"])),
        ValueError,
        "declares 39 examples and holds 40",
    ),
    "more declared": (
        lambda folder: edit_info(folder, lambda info: info["splits"][0].update(shardLengths=["41"])),
        ValueError,
        "declares 41 examples and holds 40",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_copy_is_named_on_one_line(prepared, folders, damage):
    harm, kind, what = DAMAGES[damage]
    harm(prepared)
    with pytest.raises(kind, match=f"^data_dir: .*jaxmargin_mnist.*{what}.*delete that folder.*--data-dir") as caught:
        data.load("mnist", **folders)
    error = caught.value
    assert "\n" not in str(error) and (error.__context__ is None or error.__suppress_context__)


# The cache -----------------------------------------------------------------------------------------------------------


def cached_file(folders, name):
    (path,) = folders["cache_dir"].rglob(name)
    return path


def test_cache_is_mapped_read_only_and_complete(prepared, official, folders):
    dataset = data.load("mnist", **folders)
    assert isinstance(dataset.train.images, np.memmap) and not dataset.train.images.flags.writeable
    names = {f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("images", "labels")}
    assert {path.name for path in folders["cache_dir"].rglob("*") if path.is_file()} == names | {"SHA256SUMS"}


def cut(path):
    os.truncate(path, path.stat().st_size - 100)


@pytest.mark.parametrize("harm", [cut, flip, lambda path: path.write_bytes(b""), Path.unlink])
def test_damaged_cache_is_decoded_again(prepared, official, folders, harm):
    data.load("mnist", **folders)
    harm(cached_file(folders, "train_images.npy"))
    with pytest.warns(UserWarning, match="cache_dir: .* is damaged .* decoding again"):
        assert_equal(data.load("mnist", **folders), official["mnist"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(data.load("mnist", **folders), official["mnist"])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null"])
def test_damaged_checksums_are_not_trusted(prepared, official, folders, text):
    data.load("mnist", **folders)
    cached_file(folders, "SHA256SUMS").write_text(text)
    with pytest.warns(UserWarning, match="is damaged"):
        assert_equal(data.load("mnist", **folders), official["mnist"])


def test_cache_that_cannot_be_written_costs_a_warning(prepared, official, folders):
    folders["cache_dir"].write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cache_dir: .* cannot be written .* JAXMARGIN_CACHE"):
        assert_equal(data.load("mnist", **folders), official["mnist"])


def test_other_copies_have_other_caches(prepared, folders):
    data.load("mnist", **folders)
    edit_info(prepared, lambda info: info.update(description="another copy"))
    data.load("mnist", **folders)
    assert len(list((folders["cache_dir"] / "jaxmargin_mnist").iterdir())) == 2


# The real data -------------------------------------------------------------------------------------------------------


def real_mnist(stem):
    parts = (f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz")
    images, labels = (builders.parse_idx(gzip.decompress((SHARED / "manual" / part).read_bytes())) for part in parts)
    return images[..., None], labels


@needs_shared
def test_real_mnist_is_bit_identical_to_the_official_files(folders):
    dataset = data.load("mnist", data_dir=SHARED / "tfds", cache_dir=folders["cache_dir"], download=False)
    assert_equal(dataset, {"train": real_mnist("train"), "test": real_mnist("t10k")})


@needs_shared
def test_real_mnist_files_pass_the_registered_checksums_and_are_prepared(folders, monkeypatch):
    manual, records = folders["data_dir"] / "downloads" / "manual", builders._records
    shutil.copytree(SHARED / "manual", manual, copy_function=shutil.copyfile)
    monkeypatch.setattr(builders, "_records", lambda *arrays: itertools.islice(records(*arrays), 50))
    truth = {"train": real_mnist("train"), "test": real_mnist("t10k")}
    assert_equal(data.load("mnist", **folders), {split: (x[:50], y[:50]) for split, (x, y) in truth.items()})


@needs_shared
def test_real_cifar10_follows_the_official_order():
    prepared = loading._find("cifar10", SHARED / "tfds")
    builder = tfds.builder_from_directory(prepared.folder)
    assert prepared.sizes["train"] == 50_000 and prepared.sizes["test"] in (1_000, 10_000)
    test = loading._decode_split(builder, "cifar10", "test", prepared)
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, plane, frog, frog, ...
    skip = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split="test", decoders=skip)
    ids = [int(row["id"].decode().removeprefix("test_")) for row in source.__getitems__(list(range(len(source))))]
    assert ids == list(loading._official_index("test", len(source)))


def test_official_index_is_a_permutation():
    index = loading._official_index("train", 100)
    assert sorted(index) == list(range(100))
    digests = [hashlib.md5(f"train{i}".encode()).digest() for i in index]
    assert digests == sorted(digests)
