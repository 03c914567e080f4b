import contextlib
import functools
import gzip
import hashlib
import itertools
import struct
import sys
import threading
import zlib
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import conftest
import numpy as np
import pytest
from PIL import Image

from ds4nn_jax import _pictures, data

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def arrays(train=30, test=20, size=3, shift=0) -> dict[str, np.ndarray]:
    """Images that all differ, with labels 0 … 9 in turn."""
    images = np.arange((train + test) * size**2, dtype=np.uint32) + shift
    images = (images % 251).astype(np.uint8).reshape(-1, size, size)
    labels = np.arange(train + test, dtype=np.uint8) % 10
    parts = images[:train], labels[:train], images[train:], labels[train:]
    return dict(zip(FILES, parts, strict=True))


def write(folder: Path, content=None, *, compress=True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (content or arrays()).items():
        body = idx(array)
        path = folder / (name + ".gz" if compress else name)
        path.write_bytes(gzip.compress(body, mtime=0) if compress else body)
    return folder


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No data anywhere, and no network, unless the test puts it there."""
    monkeypatch.delenv("DS4NN_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(data, "_SYSTEM_DATASETS", tmp_path / "system")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    closed = {name: ("http://127.0.0.1:9/", d) for name, (_, d) in OFFICIAL.items()}
    monkeypatch.setattr(data, "_OFFICIAL", closed)


OFFICIAL = data._OFFICIAL


# read_idx


SMALL = idx(np.arange(2 * 3 * 4).reshape(2, 3, 4))
HUGE = [
    bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + b"xy"
    for shape in ((2**32 - 1,) * 4, (2**29, 1, 1), (2**30 + 1,))
]


def read(tmp_path: Path, body: bytes, name="file") -> np.ndarray:
    (tmp_path / name).write_bytes(body)
    return data.read_idx(tmp_path / name)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (2, 3, 4, 3)])
@pytest.mark.parametrize("name", ["file", "file.gz"])
def test_read_idx_returns_what_was_written(tmp_path, shape, name):
    expected = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    body = idx(expected)
    got = read(tmp_path, gzip.compress(body) if name == "file.gz" else body, name)
    assert got.dtype == np.uint8 and got.flags.writeable
    np.testing.assert_array_equal(got, expected)


def test_read_idx_refuses_what_is_not_whole(tmp_path):
    """Cut, of another type or of no axes, empty, or with more than it promises."""
    wrong = [
        *(SMALL[:length] for length in range(len(SMALL))),
        *(SMALL[:k] + bytes([byte]) + SMALL[k + 1 :] for k, byte in enumerate((1, 1))),
        *(b"\0\0" + start + SMALL[4:] for start in (b"\x0d\3", b"\x08\0", b"\x08\xff")),
        *(b"<html>404</html>", SMALL + b"\0", SMALL + SMALL, idx(np.zeros((0, 2, 2)))),
        *HUGE,
    ]
    packed = gzip.compress(SMALL, mtime=0)
    cut = [packed[:length] for length in range(len(packed))]
    for body in (*wrong, packed):
        with pytest.raises(data.DataError, match="file: not an intact IDX file"):
            read(tmp_path, body)
    for body in (*map(gzip.compress, wrong), *cut, SMALL):
        with pytest.raises(data.DataError, match="file.gz: not an intact IDX file"):
            read(tmp_path, body, "file.gz")
    for place in range(len(packed)):  # of its header, content or checksum
        damaged = bytearray(packed)
        damaged[place] ^= 1
        with contextlib.suppress(data.DataError):
            array = read(tmp_path, bytes(damaged), "file.gz")
            np.testing.assert_array_equal(array.ravel(), np.arange(24))


def test_read_idx_does_not_unpack_a_gzip_bomb(tmp_path, monkeypatch):
    sizes, read_from = [], gzip.GzipFile.read

    def counting(self, size=-1):
        sizes.append(size)
        return read_from(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(data.DataError, match="not an intact"):
        read(tmp_path, gzip.compress(SMALL + bytes(4 << 20)), "file.gz")
    assert sizes == [4, 3 * 4, 2 * 3 * 4 + 1]


# load: IDX files


@pytest.mark.parametrize("compress, separator", [(True, "-"), (False, ".")])
def test_load_reads_idx_files(tmp_path, compress, separator):
    """In the folder, or in one of it that has the name; of one channel or of three."""
    content = arrays()
    named = {k.replace("-idx", separator + "idx"): v for k, v in content.items()}
    folder = write(tmp_path / "fashion_mnist", named, compress=compress)
    for place in (folder, tmp_path):
        dataset = data.load("fashion_mnist", place)
        for array, expected in zip(dataset[1:5], content.values(), strict=True):
            np.testing.assert_array_equal(np.squeeze(array), expected)
        assert dataset.train_images.shape == (30, 3, 3, 1)
        assert dataset.train_images.dtype == np.uint8
        assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
        assert dataset.class_names[9] == "Ankle boot"
        assert str(folder) in dataset.source
    for name in FILES[::2]:
        colour = np.repeat(content.pop(name)[..., None], 3, axis=-1)
        content[name.replace("idx3", "idx4")] = colour
    dataset = data.load("my_set", write(tmp_path / "colour", content))
    assert dataset.train_images.shape == (30, 3, 3, 3)
    assert dataset.class_names == tuple("0123456789")


def test_load_takes_the_data_set_of_a_data_dir_and_no_folder_here(
    tmp_path, monkeypatch
):
    write(tmp_path / "clothes")
    monkeypatch.chdir(tmp_path)
    assert len(data.load("clothes", tmp_path).train_images) == 30
    for name in ("./clothes", "digits"):
        with pytest.raises(ValueError, match=f"{name} takes no data_dir"):
            data.load(name, tmp_path)


def test_load_knows_data_sets_by_their_images(tmp_path, monkeypatch):
    """In any order, whatever they are loaded as; others under such a name are refused,
    and what nobody knows is told."""
    folder = write(tmp_path / "mnist")
    content = list(arrays().values())
    digest = sum(
        zlib.crc32(image.tobytes(), int(label))
        for part in (content[:2], content[2:])
        for image, label in zip(*part, strict=True)
    )
    changed = data.load("mnist", folder)
    assert changed.known is None and "not the mnist" in changed.source
    monkeypatch.setattr(data, "_DIGESTS", {digest: "mnist"})
    dataset = data.load("mnist", folder)
    assert dataset.known == "mnist" and "not the mnist" not in dataset.source
    assert data.load("kmnist", folder).known == "mnist"
    monkeypatch.setattr(data, "_DIGESTS", {digest: "fashion_mnist", 0: "mnist"})
    with pytest.raises(data.DataError, match="hold fashion_mnist, not mnist"):
        data.load("mnist", folder)


def test_load_looks_near_before_far(tmp_path, monkeypatch):
    """And stops at a corrupt file, for another place may have other images; with a
    data_dir it looks there alone."""

    def first_pixel(*place):
        return int(data.load("fashion_mnist", *place).train_images.flat[0])

    here, env, system = (
        write(tmp_path / place, arrays(shift=shift))
        for shift, place in enumerate(
            ("here", "env/fashion_mnist", "system/fashion-mnist")
        )
    )
    assert first_pixel() == 2
    monkeypatch.setenv("DS4NN_DATA_DIR", str(tmp_path / "env"))
    assert first_pixel() == 1 and first_pixel(here) == 0
    path = env / (FILES[0] + ".gz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(data.DataError, match=FILES[0]):
        data.load("fashion_mnist")
    (here / "t10k-labels-idx1-ubyte.gz").unlink()
    for folder, file in ((here, FILES[3]), (tmp_path / "absent", FILES[0])):
        with pytest.raises(data.DataNotFoundError, match=f"{folder}: no {file}"):
            data.load("fashion_mnist", folder)


@pytest.mark.parametrize(
    "name, array, message",
    [
        (FILES[1], np.full(30, 10), r"labels \[N\] in 0 … 9; .* in 0 … 10$"),
        (FILES[1], np.zeros(29), r"with \(29,\) and \(20,\)"),
        (FILES[3], np.zeros(21), r"with \(30,\) and \(21,\)"),
        (FILES[0], np.zeros(30), r"got uint8 \(30,\) and"),
        (FILES[1], np.zeros((30, 1)), r"with \(30, 1\) and"),
        (FILES[2], np.zeros((20, 4, 4)), r"\(30, 3, 3, 1\) and \(20, 4, 4, 1\)"),
    ],
)
def test_load_refuses_arrays_that_do_not_fit(tmp_path, name, array, message):
    with pytest.raises(data.DataError, match=message):
        data.load("mnist", write(tmp_path, arrays() | {name: array}))


def test_load_that_finds_nothing_names_every_place_and_the_command(tmp_path):
    with pytest.raises(data.DataNotFoundError) as caught:
        data.load("fashion_mnist")
    for part in (
        "$DS4NN_DATA_DIR/fashion_mnist: no train-images",
        str(tmp_path / "system" / "fashion-mnist"),
        str(tmp_path / "tfds" / "fashion_mnist"),
        "download from http://127.0.0.1:9/",
        "python -c \"import ds4nn_jax.data as d; d.load('fashion_mnist')\"",
        "ds4nn_jax.data.from_folders",
        *FILES,
    ):
        assert part in str(caught.value)
    with pytest.raises(data.DataNotFoundError, match="tfds.builder.'mnits'"):
        data.load("mnits")
    for name in ("", "../mnist", "mnist/..", "MNIST", "a b"):
        with pytest.raises(ValueError, match="no data set name"):
            data.load(name)


# load: TFDS


def test_load_downloads_the_official_files_once(tmp_path, monkeypatch):
    """And refuses others, from a server of small files in the official one's place."""
    folder = write(tmp_path / "served", arrays(size=28))
    contents = [(folder / f"{file}.gz").read_bytes() for file in FILES]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=folder)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        official = {"mnist": (url, digests), "kmnist": (url, [*digests[:3], "0"])}
        monkeypatch.setattr(data, "_OFFICIAL", official)
        with pytest.raises(data.DataNotFoundError, match="does not match the known"):
            data.load("kmnist")
        for _ in range(2):
            downloaded = data.load("mnist")
            for got, file in zip(
                downloaded[1:5], arrays(size=28).values(), strict=True
            ):
                np.testing.assert_array_equal(got.reshape(file.shape), file)
            for path in folder.iterdir():  # needed no longer
                path.unlink()
        with pytest.raises(data.DataNotFoundError, match="404"):
            data.load("kmnist")
        server.shutdown()
    assert "tensorflow" not in sys.modules
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(data.DataNotFoundError, match="pip install 'ds4nn_jax.exper"):
        data.load("mnist")


def prepare(root: Path, name: str, features, examples, version="1.0.0") -> Path:
    """Prepares a version of a data set of one's own."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        pkg_dir_path = root

        def _info(self):
            shown = tfds.features.FeaturesDict(features(tfds.features))
            return tfds.core.DatasetInfo(builder=self, features=shown)

        def _split_generators(self, dl_manager):
            return {part: iter(enumerate(examples)) for part in ("train", "test")}

        def _generate_examples(self):
            pass

    Own.name = name
    Own(data_dir=root, file_format="array_record").download_and_prepare()
    return root / name / version


def labelled(f):
    return {
        "image": f.Image(shape=(4, 4, 3)),
        "label": f.ClassLabel(names=["cat", "dog"]),
    }


def test_load_reads_any_image_data_set_that_tfds_prepared(tmp_path):
    """Its newest version; not one of another kind, or in TensorFlow's format."""
    pictures = [Image.new("RGB", (4, 4), (k, k, k)) for k in range(6)]
    examples = [{"image": x, "label": k % 2} for k, x in enumerate(pictures)]
    prepare(tmp_path, "pets", labelled, examples[:1], "9.0.0")
    folder = prepare(tmp_path, "pets", labelled, examples, "10.0.0")
    got = data.load("pets", tmp_path)
    assert got.class_names == ("cat", "dog") and "10.0.0" in got.source
    assert got.train_images.shape == got.test_images.shape == (6, 4, 4, 3)
    order = np.argsort(got.train_images[:, 0, 0, 0])
    np.testing.assert_array_equal(got.train_labels[order], [0, 1] * 3)
    prepare(tmp_path, "words", lambda f: {"text": f.Text()}, [{"text": "a"}])
    with pytest.raises(data.DataError, match="'label'; needed are .* with an image"):
        data.load("words", tmp_path)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(data.DataError, match="TFRECORD is not .* as array_record"):
        data.load("pets", tmp_path)


# digits and real data


def test_digits_are_the_whole_of_them_scaled_exactly():
    """Their test set, the same share of every class, never changes."""
    from sklearn.datasets import load_digits

    digits, source = data.load("digits"), load_digits()
    assert digits.train_images.shape == (1438, 8, 8, 1)
    assert digits.test_images.shape == (359, 8, 8, 1)
    images, labels = np.concatenate(digits[1:4:2]), np.concatenate(digits[2:5:2])
    np.testing.assert_array_equal(
        np.unique(images), [round(k * 255 / 16) for k in range(17)]
    )
    found, expected = (
        Counter(
            (image.tobytes(), int(label)) for image, label in zip(*rows, strict=True)
        )
        for rows in (
            (np.rint(images[..., 0] * (16 / 255)), labels),
            (source.images, source.target),
        )
    )
    assert found == expected
    test_share = np.bincount(digits.test_labels) / np.bincount(source.target)
    np.testing.assert_allclose(test_share, 0.2, atol=0.005)
    first = digits.test_labels[:20].tolist()
    assert first == [0, 9, 1, 7, 9, 0, 2, 4, 6, 9, 5, 5, 1, 3, 0, 0, 2, 6, 3, 7]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_load_reads_the_real_files(name):
    """And knows them, by all their images."""
    if (folder := conftest.real_data_dir(name)) is None:
        pytest.skip(f"no real {name}: set DS4NN_DATA_DIR to a directory that holds it")
    got = data.load(name, folder)
    assert got.known == name and got.source == f"IDX files in {folder}"
    first = {"mnist": (5, 7), "fashion_mnist": (9, 9)}[name]
    assert (got.train_labels[0], got.test_labels[0]) == first


# splits and orders


def test_stratified_split_takes_the_same_share_of_every_class():
    """As the seed alone decides."""
    labels = np.repeat([0, 3, 7], [10, 100, 45])
    rest, held_out = data.stratified_split(labels, 0.2, seed=1)
    np.testing.assert_array_equal(np.sort(np.r_[rest, held_out]), np.arange(155))
    assert Counter(labels[held_out].tolist()) == {0: 2, 3: 20, 7: 9}
    assert (np.diff(rest) > 0).all() and (np.diff(held_out) > 0).all()
    again, other = (data.stratified_split(labels, 0.2, seed=k)[1] for k in (1, 2))
    np.testing.assert_array_equal(held_out, again)
    assert not np.array_equal(held_out, other)


@pytest.mark.parametrize(
    "labels, fraction, message",
    [
        (np.zeros(10, int), 1, "between 0 and 1"),
        (np.repeat([0, 1], [1000, 10]), 0.01, r"class 1 \(10 images\)"),
        (np.zeros(4), 0.5, "integers"),
        (np.zeros((4, 2), int), 0.5, "integers"),
    ],
)
def test_stratified_split_refuses(labels, fraction, message):
    with pytest.raises(ValueError, match=message):
        data.stratified_split(labels, fraction, seed=0)


def test_epoch_permutation_is_fixed_by_seed_and_epoch():
    orders = set()
    for seed, epoch in itertools.product(range(3), range(3)):
        order = data.epoch_permutation(50, seed=seed, epoch=epoch)
        expected = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        np.testing.assert_array_equal(order, expected.permutation(50))
        orders.add(order.tobytes())
    assert len(orders) == 9


# Images of one's own


def picture(path: Path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(pixels), mode).save(path)


def test_images_in_folders_with_a_share_for_testing(tmp_path):
    for name, value in (("dog", 9), ("cat", 5)):
        for k in range(5):
            picture(tmp_path / name / f"{k}.png", np.full((3, 4), value + 10 * k))
    (tmp_path / "cat" / ".hidden").write_text("no picture")
    found = data.load(str(tmp_path))
    assert found.class_names == ("cat", "dog") and found.name == str(tmp_path)
    assert found.train_images.shape == (8, 3, 4, 1) and len(found.test_labels) == 2
    for images, labels in (found[1:3], found[3:5]):
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 10, np.array([5, 9])[labels])
    again = data.from_folders(tmp_path)
    np.testing.assert_array_equal(again.test_images, found.test_images)


def test_images_in_folders_for_training_and_testing(tmp_path):
    """A colour, a palette, transparent pictures: all have three channels then, and
    are what `ds4nn predict` sees."""
    picture(tmp_path / "train/a/0.png", np.full((2, 2), 7))
    picture(tmp_path / "train/b/0.png", np.full((2, 2, 3), (1, 2, 3)))
    picture(tmp_path / "train/b/1.png", np.full((2, 2, 4), (200, 200, 200, 0)))
    ink = np.zeros((2, 2, 4))  # dark, on nothing: a viewer shows it on white
    ink[1, 1, 3] = 255
    picture(tmp_path / "train/b/2.png", ink)
    picture(tmp_path / "test/b/0.bmp", np.full((2, 2), 4))
    found = data.from_folders(tmp_path)
    assert found.train_labels.tolist() == [0, 1, 1, 1]
    assert found.test_labels.tolist() == [1]
    firsts = found.train_images[:, 0, 0].tolist()
    assert firsts == [[7, 7, 7], [1, 2, 3], [0, 0, 0], [255, 255, 255]]
    for path, image in zip(
        sorted((tmp_path / "train").rglob("*.png")), found.train_images, strict=True
    ):
        np.testing.assert_array_equal(_pictures.fitted(path, (2, 2, 3))[0], image)
    assert found.test_images[0, 1, 1].tolist() == [4, 4, 4]


def test_folders_that_are_no_data_set(tmp_path):
    def refused(message):
        with pytest.raises(data.DataError, match=message):
            data.from_folders(tmp_path)

    refused("needed is a folder for each class, .* found are none")
    picture(tmp_path / "a" / "0.png", np.zeros((2, 2)))
    picture(tmp_path / "b" / "0.png", np.zeros((3, 2)))
    refused("b.0.png: 2×3, .* one size, 2×2 of .*a.0.png")
    (tmp_path / "b" / "0.png").write_bytes(b"\x89PNG, cut")
    refused("b.0.png: cannot be read: cannot identify image")
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "b" / "0.png")
    refused("b.0.png: .* needed are 8 bits")
    picture(tmp_path / "b" / "0.png", np.zeros((2, 2)))
    refused("holding out 0.2 of class 0")
    (tmp_path / "b" / "0.png").unlink()
    (tmp_path / "a" / "0.png").unlink()
    refused(r"got uint8 \(0,\)")
    with pytest.raises(FileNotFoundError, match="absent"):
        data.from_folders(tmp_path / "absent")


def test_images_in_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2)
    labels = np.array([3, 8] * 5)
    split = dict(x_train=images[:6], y_train=labels[:6], x_test=images[6:])
    np.savez("all.npz", x=images, y=labels)
    np.savez("split.npz", y_test=labels[6:], **split)
    table = np.c_[labels, images.reshape(10, 4)].astype(str)
    np.savetxt("bare.csv", table, "%s", ",")
    table[::2, 0] = "cat"
    np.savetxt("named.csv", table, "%s", ",", header="Label,p0,p1,p2,p3", comments="")
    for name, classes, tested in (
        ("all.npz", ("3", "8"), 2),
        ("split.npz", ("3", "8"), 4),
        ("bare.csv", ("3", "8"), 2),
        ("named.csv", ("8", "cat"), 2),
    ):
        found = data.load(name)
        assert found.class_names == classes and len(found.test_labels) == tested, name
        for x, y in (found[1:3], found[3:5]):
            which = (x[:, 0, 0, 0] // 4) % 2  # rows begin with 0, 4, 8, …
            assert x.shape[1:] == (2, 2, 1)
            expected = which if classes[0] == "3" else 1 - which
            np.testing.assert_array_equal(y, expected, name)
    few = dict(x_train=images, y_train=labels[1:], x_test=images, y_test=labels)
    np.savez("other.npz", pixels=images)
    np.savez("half.npz", x=images / 255, y=labels)
    np.savez("short.npz", x=images, y=labels[1:])
    np.savez("few.npz", **few)
    for name, text in (("bad", "1,2,300\n2,1,2\n"), ("empty", "\n")):
        Path(f"{name}.csv").write_text(text)
    for name, message in (
        ("other.npz", "holds pixels; needed are train_images and"),
        ("half.npz", "uint8 of one shape.*; got float64"),
        ("short.npz", "10 images, 9 labels"),
        ("few.npz", r"with \(9,\) and \(10,\)"),
        ("bad.csv", "pixels must be .* 255"),
        ("empty.csv", ""),
    ):
        with pytest.raises(data.DataError, match=f"{name}.*{message}"):
            data.load(name)
