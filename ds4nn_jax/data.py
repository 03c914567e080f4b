"""Data sets as NumPy arrays: IDX files, the digits, TFDS, or your own images."""

import difflib
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

_CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# Where the official files are, and their SHA-256 in this order.
_OFFICIAL = {
    "mnist": (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "kmnist": (
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        (
            "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        ),
    ),
}
# Sums of CRC-32 over all images with their labels: TFDS has them in another order.
_DIGESTS = {150584038463785: "mnist", 150020560615121: "fashion_mnist"}
_ARRAYS = (  # names in .npz files
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels"),
    ("x", "y"),
)
_SYSTEM_DATASETS = Path("/usr/share/datasets")  # Debian's dataset-* packages
_MOST_BYTES = 1 << 30  # of an IDX file's array
_SPLIT_STREAM = 2**64 - 1  # of the generator's streams, one that no epoch reaches
_EXTRA = "pip install 'ds4nn_jax[experiments]'"
_OWN = (
    "the path of your own images: a folder with a folder for each class, a .npz or a "
    ".csv file (ds4nn_jax.data.from_folders, from_file)"
)


class DataError(ValueError):
    """A data file is corrupt or does not hold what it must."""


class DataNotFoundError(FileNotFoundError):
    """A data set is nowhere; names every place looked at and how to fetch it."""


class Dataset(NamedTuple):
    """Images and labels in the order of their source.

    Fields:
      name: as given to `load`.
      train_images: [N, H, W, C] uint8.
      train_labels: [N] int32, 0 … classes − 1.
      test_images: [M, H, W, C] uint8.
      test_labels: [M] int32.
      class_names: one per class.
      source: where it came from, in words.
      known: the name by which the world knows all of these images, whatever they were
        loaded as: "mnist", "fashion_mnist", or None.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    known: str | None = None


class Pictures(NamedTuple):
    """How images were made of pictures, which `ds4nn predict` does again.

    It is a note of the weights file, "pictures": `pictures(…)._asdict()`.

    Fields:
      fit: "whole": a picture is scaled until it fits; "ink": as MNIST was made, the
        ink's box is scaled to 20×20 and centred by its mass in 28×28.
      ground: "dark", "light", or "mixed": what the borders of the images are.
      light: the least and the largest share of light pixels (≥ 128) of an image, but
        for one image in a hundred on either side.
    """

    fit: str
    ground: str
    light: tuple[float, float]


def pictures(images: np.ndarray, *, fit: str = "whole") -> Pictures:
    """How the pictures of training images were prepared, as far as these show it.

    Args:
      images: [N, H, W, C] uint8, or floating in [0, 1].
      fit: as `Pictures` has it.

    Example:
      >>> from ds4nn_jax import data
      >>> data.pictures(data.load("digits").train_images).ground
      'dark'
    """
    from ds4nn_jax._pictures import border  # not before: it needs Pillow and SciPy

    images = np.asarray(images)
    few = images[:: max(1, len(images) // 10_000)]
    few = few if few.dtype == np.uint8 else np.rint(255 * few.astype(np.float32))
    tones = np.array([np.median(border(image)) for image in few])
    ground = "mixed"
    if np.mean(tones < 64) > 0.95:
        ground = "dark"
    elif np.mean(tones > 191) > 0.95:
        ground = "light"
    share = (few >= 128).mean(axis=(1, 2, 3))
    low, high = np.quantile(share, (0.005, 0.995)).tolist()
    return Pictures(fit, ground, (low, high))


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a data set from the nearest place that holds it.

    `digits` (UCI digits, 1,797 images of 8×8) comes with scikit-learn; a fixed
    stratified fifth of it is the test set. Any other name is looked for in

      1. `$DS4NN_DATA_DIR/<name>`: the four IDX files, plain or gzipped
      2. `/usr/share/datasets/<name>`: the same, from a Debian package
      3. `$TFDS_DATA_DIR` or `~/tensorflow_datasets`: a data set prepared by TFDS as
         array_record
      4. the official files (mnist, fashion_mnist, kmnist), downloaded once into the
         user's cache and compared with their checksums

    or, when `data_dir` is given, there only: IDX files in it or in its folder
    `<name>`, or a TFDS directory prepared below it. TFDS shuffles the images when it
    prepares them, so their order depends on the source; the images do not.

    Your own images are named by their path, see `from_folders` and `from_file`.

    Args:
      name: "digits", "mnist", "fashion_mnist", another TFDS image data set with its
        configuration, if any ("emnist/letters"), or the path of your own images.
      data_dir: where the files are. Not for `digits`.

    Returns:
      The whole data set, in memory.

    Raises:
      DataNotFoundError: no place holds it.
      DataError: the files found are corrupt, are not an image data set, or hold
        another one than the name says.
      ValueError: the name cannot be that of a data set.
    """
    is_name = re.fullmatch(r"[a-z][a-z0-9_]*(/\w[\w.-]*)?", name)
    # With a data_dir a name is one of its data sets, whatever folder is here.
    path = None if is_name and data_dir is not None else local_path(name)
    if data_dir is not None and (path or name == "digits"):
        raise ValueError(f"{name} takes no data_dir (--data_dir): leave it out")
    if path:
        return from_folders(path) if path.is_dir() else from_file(path)
    if name == "digits":
        return _load_digits()
    names = "digits", *_OFFICIAL
    close = difflib.get_close_matches(name.lower().replace("-", "_"), names, 1)
    hint = f"; did you mean {close[0]}?" if close and name not in names else ""
    if not is_name:
        raise ValueError(
            f"{name!r} is no data set name{hint or ':'} Say {', '.join(names)}, the "
            f"name of another TFDS image data set, or {_OWN}"
        )
    return _nearest(name, data_dir, hint)


def _nearest(name: str, data_dir: str | os.PathLike | None, hint: str) -> Dataset:
    """The data set from the first place that has it."""
    message = [f"no data set {name!r} found{hint or '.'} Looked at:"]
    if data_dir is not None:
        home = prepared = Path(data_dir).expanduser()
        folders = [home, home / name]
    else:
        home = Path(os.environ.get("DS4NN_DATA_DIR") or "$DS4NN_DATA_DIR").expanduser()
        folders = [home / name, _SYSTEM_DATASETS / name.replace("_", "-")]
        prepared = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    sources: list[Callable[[], Dataset]] = [
        *(partial(_from_idx, name, folder) for folder in folders),
        partial(_from_tfds, name, prepared.expanduser()),
    ]
    if data_dir is None:
        sources.append(partial(_from_download, name))
    for source in sources:
        try:
            return source()
        except DataNotFoundError as missing:
            message.append(f"  - {missing}")
    command = (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()"
    )
    if name in _OFFICIAL:
        command = f"import ds4nn_jax.data as d; d.load('{name}')"
    message += [
        f'To fetch it, with network: python -c "{command}"',
        f"or put {', '.join(_IDX_FILES)} into a directory DIR and say data_dir=DIR "
        "(--data_dir=DIR on the command line)",
        f"or give {_OWN}",
    ]
    raise DataNotFoundError("\n".join(message))


def local_path(name: str) -> Path | None:
    """The folder, .npz or .csv file that a name stands for; None for a data set's."""
    path = Path(name).expanduser()
    if not name or name == "digits" or name in _OFFICIAL:
        return None
    readable = path.is_dir() or path.is_file() and path.suffix in (".npz", ".csv")
    return path if readable else None


def from_folders(directory: str | os.PathLike, *, test: float = 0.2) -> Dataset:
    """Images in folders, one for each class, as files that Pillow reads.

        pets/cat/1.png  pets/dog/2.png                         a share is for testing,
        pets/train/cat/1.png  pets/train/dog/2.png  pets/test/cat/3.png  or a folder is

    Args:
      directory: with a folder for each class, or with `train` and `test`, which have
        them. Classes are numbered by name.
      test: the share of each class that is the test set, always the same, where there
        are no folders `train` and `test`.

    Returns:
      Images [N, H, W, 1], or [N, H, W, 3] if one has colours, as a viewer shows them
      and `ds4nn predict` sees them: what is transparent is white behind dark ink and
      black behind light ink.

    Raises:
      DataError: no classes, a file that is no picture, or pictures of several sizes.
    """
    directory = Path(directory)
    roots = [directory / "train", directory / "test"]
    roots = roots if all(root.is_dir() for root in roots) else [directory]
    folders = [
        [path for path in _visible(root) if path.is_dir() and path.name[0] != "_"]
        for root in roots
    ]
    classes = [folder.name for folder in folders[0]]
    if len(classes) < 2 or not {folder.name for folder in folders[-1]} <= {*classes}:
        raise DataError(
            f"{directory}: needed is a folder for each class, or train and test, with "
            f"one for each class; found are {', '.join(classes) or 'none'}"
        )
    paths = [[path for folder in part for path in _visible(folder)] for part in folders]
    labels = [classes.index(path.parent.name) for part in paths for path in part]
    arrays = _pictures(sum(paths, [])), np.array(labels, int)
    images, numbers = (np.split(a, [len(paths[0])])[: len(roots)] for a in arrays)
    return _own(directory, images, numbers, tuple(classes), test)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def from_file(path: str | os.PathLike, *, test: float = 0.2) -> Dataset:
    """Images in one file: a .npz of arrays, or a .csv with a row for each image.

    Args:
      path: a .npz with train_images, train_labels, test_images and test_labels (or
        x_train, …), or images and labels (or x, y): uint8 [N, H, W] or [N, H, W, C]. A
        .csv: the label, then 0 … 255 for each pixel, with or without a header.
      test: the share of each class that is the test set, always the same, where the
        file has none.

    Raises:
      DataError: the file holds something else.
    """
    path = Path(path)
    try:
        arrays = _from_npz(path) if path.suffix == ".npz" else _from_csv(path)
        classes = [np.ravel(array) for array in arrays[1::2]]
        values, labels = np.unique(np.concatenate(classes), return_inverse=True)
    except Exception as error:  # what is written in a file can go wrong anywhere
        raise DataError(f"{path}: {' '.join(str(error).split())}") from error
    names = tuple(map(str, values.tolist()))
    parts = np.split(labels, [len(classes[0])])[: len(classes)]
    return _own(path, arrays[::2], parts, names, test)


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped when its name ends in .gz.

    The header is 0, 0, 8 (unsigned byte), the rank, and the length of each axis as
    four bytes, most significant first. No more than it promises plus one byte is ever
    decompressed.

    Returns:
      uint8 array of 1 to 4 axes, none empty, of at most 1 GiB.

    Raises:
      DataError: the file holds something else, or is damaged.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            magic = stream.read(4)
            zero, kind, rank = struct.unpack(">HBB", magic)
            shape = struct.unpack(f">{rank}I", stream.read(4 * rank))
            size = math.prod(shape)
            if (
                (zero, kind) != (0, 8)
                or not 0 < rank < 5
                or not 0 < size <= _MOST_BYTES
            ):
                raise ValueError(f"begins with {magic.hex(' ')}, shape {shape[:4]}")
            content = stream.read(size + 1)
        return np.frombuffer(content, np.uint8).reshape(shape).copy()
    except (ValueError, struct.error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: not an intact IDX file of unsigned bytes, 1 to 4 axes, none "
            f"empty, at most 1 GiB (gzipped if its name ends in .gz): {error}"
        ) from error


def stratified_split(
    labels: np.ndarray, fraction: float, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices in two, holding out the same fraction of every class.

    Depends on its arguments only, not on any state or platform.

    Args:
      labels: [N] integers.
      fraction: the share of each class to hold out, in (0, 1), to the nearest image.
      seed: 0 … 2⁶⁴ − 1.

    Returns:
      (rest, held_out): indices in ascending order, each index in exactly one.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not 0 < fraction < 1:
        raise ValueError(
            "labels must be [N] integers and fraction between 0 and 1, got "
            f"{labels.dtype} {labels.shape} and {fraction}"
        )
    generator = _generator(seed, _SPLIT_STREAM)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        count = round(len(indices) * fraction)
        if not 0 < count < len(indices):
            raise ValueError(
                f"holding out {fraction} of class {label} ({len(indices)} images) "
                "leaves it without an image on one side: hold out another share"
            )
        held_out[generator.permutation(indices)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def epoch_permutation(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation [n] int64 fixed by (seed, epoch).

    The generator is counter-based, so a resumed run needs no iterator state. Seed and
    epoch lie in 0 … 2⁶⁴ − 1.
    """
    return _generator(seed, epoch).permutation(n)


def _generator(seed: int, stream: int) -> np.random.Generator:
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _load_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataNotFoundError(f"digits come with scikit-learn: {_EXTRA}") from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple("0123456789")
    dataset = _own(Path("digits"), [images], [digits.target], names, 0.2)
    return dataset._replace(source="scikit-learn's copy of the UCI digits")


def _pictures(paths: list[Path]) -> np.ndarray:
    """Pictures as `ds4nn predict` sees them: [N, H, W], or [N, H, W, 3] of colours."""
    from ds4nn_jax import _pictures

    pictures = []
    for path in paths:
        try:
            picture, _ = _pictures.read(path)
        except _pictures.PictureError as error:
            raise DataError(f"{path}: {error}") from error
        pictures.append(picture)
        if picture.mode == "F" or picture.size != pictures[0].size:
            (width, height), first = picture.size, pictures[0]
            raise DataError(
                f"{path}: {width}×{height}, mode {picture.mode}; needed are 8 bits and "
                f"one size, {first.width}×{first.height} of {paths[0]}"
            )
    mode = "RGB" if any(picture.mode == "RGB" for picture in pictures) else "L"
    return np.array([np.asarray(p.convert(mode)) for p in pictures], np.uint8)


def _from_npz(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        for names in _ARRAYS:
            if {*names} <= {*file.files}:
                return [file[name] for name in names]
        raise ValueError(
            f"holds {', '.join(file.files) or 'nothing'}; needed are "
            + ", or ".join(" and ".join(names) for names in _ARRAYS)
        )


def _from_csv(path: Path) -> list[np.ndarray]:
    rows = np.loadtxt(path, str, delimiter=",", ndmin=2, encoding="utf-8-sig")
    rows = np.char.strip(rows)
    names, column = np.char.lower(rows[0]).tolist(), 0
    if not names[-1].isdigit():
        rows, column = rows[1:], names.index("label") if "label" in names else 0
    pixels = np.delete(rows, column, axis=1).astype(int)
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError("pixels must be integers 0 … 255")
    side = math.isqrt(pixels.shape[1])
    shape = (side, side) if side**2 == pixels.shape[1] else (1, pixels.shape[1])
    labels = rows[:, column]
    whole = np.char.isdigit(labels).all()
    images = pixels.astype(np.uint8).reshape(-1, *shape)
    return [images, labels.astype(int) if whole else labels]


def _own(
    path: Path, images: list, labels: list, names: tuple[str, ...], test: float
) -> Dataset:
    """Of the images and labels for training and for testing, or of all together: then
    a share of each class is for testing."""
    source = f"{path}, which says what is for testing"
    if len(images) == 1:
        source = f"{path}, {test:.0%} of each class for testing"
        if len(images[0]) != len(labels[0]):
            raise DataError(f"{path}: {len(images[0])} images, {len(labels[0])} labels")
        try:
            parts = stratified_split(labels[0], test, seed=0)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        images, labels = ([array[k] for k in parts] for (array,) in (images, labels))
    return _dataset(os.path.normpath(path), images, labels, names, source)


def _from_idx(name: str, folder: Path) -> Dataset:
    arrays = []
    for file in _IDX_FILES:
        stem = file.partition("-idx")[0]
        paths = sorted(folder.glob(f"{stem}[-.]idx[134]-ubyte*"))
        if not paths:
            raise DataNotFoundError(f"{folder}: no {file.removesuffix('.gz')}[.gz]")
        arrays.append(read_idx(paths[0]))
    images, labels = arrays[::2], arrays[1::2]
    numbers = map(str, range(1 + max(array.max() for array in labels)))
    names = _CLASS_NAMES.get(name, tuple(numbers))
    return _dataset(name, images, labels, names, f"IDX files in {folder}")


def _from_tfds(name: str, root: Path) -> Dataset:
    """Reads the newest version of a data set that TFDS prepared under `root`."""
    infos = (root / name).glob("[0-9]*.*.*/dataset_info.json")
    folders = {tuple(map(int, re.findall(r"\d+", p.parent.name))): p for p in infos}
    if not folders:
        raise DataNotFoundError(f"{root / name}: no data set prepared by TFDS")
    folder = folders[max(folders)].parent
    images, labels = [], []
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
        names = tuple(builder.info.features["label"].names)
        rows = builder.as_data_source()
        for split in ("train", "test"):
            pairs = [(row["image"], row["label"]) for row in rows[split]]
            pixels, classes = map(np.stack, zip(*pairs, strict=True))
            images.append(pixels)
            labels.append(classes)
    except Exception as error:  # of many types
        raise DataError(
            f"{folder}: {' '.join(str(error).split())}; needed are {_EXTRA}, and "
            "splits train and test with an image, of one shape, and a class label, "
            "prepared as array_record (tfrecord can only be read with TensorFlow)"
        ) from error
    return _dataset(name, images, labels, names, f"TFDS directory {folder}")


def _from_download(name: str) -> Dataset:
    """The official files, in the user's cache."""
    if name not in _OFFICIAL:
        raise DataNotFoundError("download: only of " + ", ".join(_OFFICIAL))
    url, digests = _OFFICIAL[name]
    try:
        import pooch

        folder = pooch.os_cache("ds4nn_jax") / name
        for file, digest in zip(_IDX_FILES, digests, strict=True):
            pooch.retrieve(url + file, f"sha256:{digest}", file, folder)
    except (ImportError, ValueError, OSError) as error:
        raise DataNotFoundError(
            f"download from {url}, with {_EXTRA}: {error}"
        ) from error
    return _from_idx(name, folder)


def _dataset(
    name: str, images: list, labels: list, class_names: tuple[str, ...], source: str
) -> Dataset:
    """The data set, when its arrays fit each other and its classes, with the name that
    its images are known by; `source` says if these are not those of its name."""
    images = [array[..., None] if array.ndim == 3 else array for array in images]
    labels = [np.asarray(array).astype(np.int32) for array in labels]
    fits, digest = images[0].shape[1:] == images[1].shape[1:], 0
    for pixels, classes in zip(images, labels, strict=True):
        fits &= pixels.ndim == 4 and pixels.dtype == np.uint8 and pixels.size > 0
        fits &= classes.shape == pixels.shape[:1]
        fits &= bool(np.isin(classes, range(len(class_names))).all())
        if not fits:
            found = np.concatenate([array.ravel() for array in labels])
            raise DataError(
                f"{source}: needed are images [N, H, W, C] uint8 of one shape, with "
                f"labels [N] in 0 … {len(class_names) - 1}; got {pixels.dtype} "
                f"{images[0].shape} and {images[1].shape}, with {labels[0].shape} and "
                f"{labels[1].shape} in {found.min(initial=0)} … {found.max(initial=0)}"
            )
        rows = zip(np.ascontiguousarray(pixels), classes.tolist(), strict=True)
        digest += sum(zlib.crc32(image, label) for image, label in rows)
    known = _DIGESTS.get(digest)
    if name in _DIGESTS.values() and known != name:
        if known is not None:
            raise DataError(f"{source}: hold {known}, not {name}")
        source = f"{source} (not the {name} that everybody has)"
    arrays = images[0], labels[0], images[1], labels[1]
    return Dataset(name, *arrays, class_names, source, known)
