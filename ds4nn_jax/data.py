"""Data sets as NumPy arrays: IDX files, the embedded digits, TFDS, or your own images.

The only module that knows TFDS, and it imports it only when nothing nearer is found.
Everything that comes from a file is checked before it is handed on.
"""

import difflib
import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
)
_CLASS_NAMES = {
    "mnist": _DIGIT_NAMES,
    "fashion_mnist": tuple(_FASHION_NAMES.split(",")),
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
_SYSTEM_DATASETS = Path("/usr/share/datasets")  # Debian's dataset-* packages
_MOST_BYTES = 1 << 30  # of an IDX file's array
_OWN = (
    "the path of your own images: a folder with a folder for each class, a .npz or a "
    ".csv file (ds4nn_jax.data.from_folders, from_file)"
)
_ARRAYS = (  # names in .npz files
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels"),
    ("x", "y"),
)
_SPLIT_STREAM = 2**64 - 1  # of the generator's streams, one that no epoch reaches


# Sums of CRC-32 over all images with their labels: TFDS has them in another order.
_DIGESTS = {150584038463785: "mnist", 150020560615121: "fashion_mnist"}


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
    images = np.asarray(images)
    few = images[:: max(1, len(images) // 10_000)]
    few = few if few.dtype == np.uint8 else np.rint(255 * few.astype(np.float32))
    tones = np.array([border_tone(image) for image in few])
    ground = "mixed"
    if np.mean(tones < 64) > 0.95:
        ground = "dark"
    elif np.mean(tones > 191) > 0.95:
        ground = "light"
    share = (few >= 128).mean(axis=(1, 2, 3))
    low, high = np.quantile(share, (0.005, 0.995)).tolist()
    return Pictures(fit, ground, (low, high))


def border_tone(image: np.ndarray) -> float:
    """Median of the outermost pixels of an image [H, W] or [H, W, C]."""
    sides = image[0], image[-1], image[:, 0], image[:, -1]
    return float(np.median(np.concatenate([side.ravel() for side in sides])))


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
    if (path := local_path(name)) and not (is_name and data_dir is not None):
        if data_dir is not None:
            raise ValueError(f"{name} is a path already and takes no data_dir")
        return _identified(from_folders(path) if path.is_dir() else from_file(path))
    names = "digits", *_OFFICIAL
    close = difflib.get_close_matches(name.lower().replace("-", "_"), names, 1)
    hint = f": did you mean {close[0]}?" if close and name not in names else ""
    if not is_name:
        raise ValueError(
            f"{name!r} is no data set name{hint or ':'} Say digits, mnist, "
            "fashion_mnist, the name of another TFDS image data set, or "
            f"{_OWN}"
        )
    if name == "digits":
        if data_dir is not None:
            raise ValueError(
                "digits comes with scikit-learn: leave data_dir (--data_dir) out"
            )
        return _load_digits()
    message = [f"no data set {name!r} found{hint or '.'} Looked at:"]
    for source in _sources(name, data_dir):
        try:
            return _identified(source())
        except DataNotFoundError as missing:
            message.append(f"  - {missing}")
    raise DataNotFoundError("\n".join([*message, *_how_to_fetch(name)]))


def _identified(dataset: Dataset) -> Dataset:
    """The data set with the name that its images are known by; `source` says if these
    are not the ones that everybody has under its name."""
    digest = sum(
        zlib.crc32(image, int(label))
        for images, labels in (dataset[1:3], dataset[3:5])
        for image, label in zip(np.ascontiguousarray(images), labels, strict=True)
    )
    known, source = _DIGESTS.get(digest), dataset.source
    if dataset.name in _DIGESTS.values():
        if known is None:
            source = f"{source} (not the {dataset.name} that everybody has)"
        elif known != dataset.name:
            raise DataError(f"{source}: hold {known}, not {dataset.name}")
    return dataset._replace(known=known, source=source)


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
    split = {"train", "test"} <= {folder.name for folder in _folders(directory)}
    roots = [directory / "train", directory / "test"] if split else [directory]
    classes = [folder.name for folder in _folders(roots[0])]
    if len(classes) < 2:
        raise DataError(
            f"{directory}: {len(classes)} folders, needed is one for each class (or "
            "train and test, with one for each class)"
        )
    paths: list[Path] = []
    labels: list[int] = []
    counts = []
    for root in roots:
        for folder in _folders(root):
            if folder.name not in classes:
                raise DataError(f"{folder}: train has no class {folder.name!r}")
            files = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".")]
            paths += files
            labels += [classes.index(folder.name)] * len(files)
        counts.append(len(paths))
    images, numbers = _pictures(paths), np.array(labels, np.int32)
    names, part = tuple(classes), counts[0] if split else test
    return _parted(directory, images, numbers, names, part)


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
    read = _from_npz if path.suffix == ".npz" else _from_csv
    try:
        images, classes, count = read(path)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from error
    if images.ndim == 3:
        images = images[..., None]
    values, labels = np.unique(classes, return_inverse=True)
    names, part = tuple(map(str, values.tolist())), test if count is None else count
    return _parted(path, images, labels.astype(np.int32), names, part)


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped when its name ends in .gz.

    The header is 0, 0, 8 (unsigned byte), the rank, and the length of each axis as
    four bytes, most significant first. No more than it promises plus one byte is ever
    decompressed.

    Returns:
      uint8 array of 1 to 4 axes, none empty, of at most 1 GiB.

    Raises:
      DataError: wrong magic number, type, rank or size; bytes missing or left over;
        not a gzip file, or a damaged one.
      OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            shape = _idx_shape(stream, path)
            size = math.prod(shape)
            if size > _MOST_BYTES:
                raise DataError(
                    f"{path}: the header promises {size} bytes, more than the "
                    f"{_MOST_BYTES} allowed"
                )
            content = stream.read(size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not an intact gzip file: {error}") from error
    if len(content) < size:
        raise DataError(
            f"{path}: truncated: {len(content)} of {size} bytes of shape {shape}"
        )
    if len(content) > size:
        raise DataError(f"{path}: bytes left over after an array of shape {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def stratified_split(
    labels: np.ndarray, fraction: float, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices in two, holding out the same fraction of every class.

    Depends on its arguments only, not on any state or platform.

    Args:
      labels: [N] whole numbers.
      fraction: the share of each class to hold out, in (0, 1), to the nearest image.
      seed: 0 … 2⁶⁴ − 1.

    Returns:
      (rest, held_out): indices in ascending order, each index in exactly one.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be [N] whole numbers, got {labels.dtype} {labels.shape}"
        )
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    generator = _generator(seed, _SPLIT_STREAM)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(len(members) * fraction)
        if not 0 < count < len(members):
            raise ValueError(
                f"holding out {fraction} of class {label} ({len(members)} images) "
                "leaves it without an image on one side: hold out another share, or "
                "none, or add images of it"
            )
        held_out[generator.permutation(members)[:count]] = True
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


def _idx_shape(stream, path: Path) -> tuple[int, ...]:
    magic = stream.read(4)
    if magic[:2] == b"\x1f\x8b":
        raise DataError(f"{path}: a gzip file, but its name does not end in .gz")
    if len(magic) < 4:
        raise DataError(f"{path}: truncated: no IDX header")
    rank = magic[3]
    if magic[:3] != b"\0\0\x08" or not 1 <= rank <= 4:
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes with 1 to 4 axes: it begins "
            f"with {magic.hex(' ')}"
        )
    lengths = stream.read(4 * rank)
    if len(lengths) < 4 * rank:
        raise DataError(f"{path}: truncated: {rank} axes promised in the header")
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    if 0 in shape:
        raise DataError(f"{path}: empty: shape {shape}")
    return shape


def _load_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataNotFoundError(
            "digits come with scikit-learn: pip install 'ds4nn_jax[experiments]'"
        ) from error
    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    train, test = stratified_split(labels, 0.2, seed=0)
    arrays = images[train], labels[train], images[test], labels[test]
    source = "scikit-learn's copy of the UCI digits"
    return Dataset("digits", *arrays, _DIGIT_NAMES, source)


def _folders(directory: Path) -> list[Path]:
    try:
        folders = [path for path in directory.iterdir() if path.is_dir()]
    except OSError as error:
        raise DataNotFoundError(f"{directory}: no such directory") from error
    return sorted(f for f in folders if not f.name.startswith((".", "_")))


def _pictures(paths: list[Path]) -> np.ndarray:
    """Pictures [N, H, W, C] of one size, C = 3 if one has colours."""
    pictures = [_picture(path) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            sizes = [f"{p.shape[1]}×{p.shape[0]}" for p in (pictures[0], picture)]
            raise DataError(
                f"images must have one size: {paths[0]} is {sizes[0]}, {path} is "
                f"{sizes[1]}"
            )
    channels = max((p.shape[2] for p in pictures), default=1)
    wide = [np.broadcast_to(p, (*p.shape[:2], channels)) for p in pictures]
    return np.stack(wide) if wide else np.zeros((0, 0, 0, 1), np.uint8)


def _picture(path: Path) -> np.ndarray:
    """A picture [H, W, 1 or 3] uint8, as `ds4nn predict` would see it."""
    from ds4nn_jax import _pictures

    try:
        picture, _ = _pictures.read(path)
    except _pictures.PictureError as error:
        raise DataError(f"{path}: {error}") from error
    if picture.mode == "F":
        raise DataError(f"{path}: pixels of more than 8 bits, needed are 8")
    return np.atleast_3d(np.asarray(picture))


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Images, labels, and how many of them are for training, if the file says so."""
    with np.load(path) as file:
        for names in _ARRAYS:
            if {*names} <= {*file.files}:
                arrays = [file[name] for name in names]
                break
        else:
            raise ValueError(
                f"holds {', '.join(file.files) or 'nothing'}; needed are "
                + ", or ".join(" and ".join(names) for names in _ARRAYS)
            )
    images, labels = arrays[::2], [np.ravel(array) for array in arrays[1::2]]
    count = len(images[0]) if len(images) > 1 else None
    return np.concatenate(images), np.concatenate(labels), count


def _from_csv(path: Path) -> tuple[np.ndarray, np.ndarray, None]:
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline().strip().split(",")
    header = not first[-1].strip().isdigit()
    names = [name.strip().lower() for name in first]
    column = names.index("label") if header and "label" in names else 0
    rows = np.loadtxt(
        path, str, delimiter=",", skiprows=int(header), ndmin=2, encoding="utf-8-sig"
    )
    pixels = np.delete(rows, column, axis=1).astype(int)
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError("pixels must be whole numbers 0 … 255")
    side = math.isqrt(pixels.shape[1])
    shape = (side, side) if side**2 == pixels.shape[1] else (1, pixels.shape[1])
    labels = np.char.strip(rows[:, column])
    whole = np.char.isdigit(labels).all()
    images = pixels.astype(np.uint8).reshape(-1, *shape)
    return images, labels.astype(int) if whole else labels, None


def _parted(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    part: int | float,
) -> Dataset:
    """A number: so many images, the first, are for training; a share: so much of each
    class is for testing."""
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images, {len(labels)} labels")
    if isinstance(part, int):
        train, test = np.arange(part), np.arange(part, len(labels))
        source = f"{path}, which says what is for testing"
    else:
        try:
            train, test = stratified_split(labels, part, seed=0)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        source = f"{path}, {part:.0%} of each class for testing"
    arrays = images[train], labels[train], images[test], labels[test]
    return _checked(Dataset(os.path.normpath(path), *arrays, names, source))


def _sources(
    name: str, data_dir: str | os.PathLike | None
) -> list[Callable[[], Dataset]]:
    """The places to look at, nearest first; each raises DataNotFoundError if bare."""
    if data_dir is not None:
        home = Path(data_dir).expanduser()
        return [
            partial(_from_idx, name, home),
            partial(_from_idx, name, home / name),
            partial(_from_tfds, name, home),
        ]
    home = Path(os.environ.get("DS4NN_DATA_DIR") or "$DS4NN_DATA_DIR").expanduser()
    prepared = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return [
        partial(_from_idx, name, home / name),
        partial(_from_idx, name, _SYSTEM_DATASETS / name.replace("_", "-")),
        partial(_from_tfds, name, prepared.expanduser()),
        partial(_from_download, name),
    ]


def _how_to_fetch(name: str) -> list[str]:
    command = (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()"
    )
    if name in _OFFICIAL:
        command = f"import ds4nn_jax.data as d; d.load('{name}')"
    debian = ["or: apt install dataset-fashion-mnist"] * (name == "fashion_mnist")
    return [
        f'To fetch it, with network: python -c "{command}"',
        *debian,
        f"or put {', '.join(_IDX_FILES)} into a directory DIR and say data_dir=DIR "
        "(--data_dir=DIR on the command line)",
        f"or give {_OWN}",
    ]


def _from_idx(name: str, folder: Path) -> Dataset:
    if not folder.is_dir():
        raise DataNotFoundError(f"{folder}: no such directory")
    arrays = []
    for path in [_idx_path(folder, file) for file in _IDX_FILES]:
        array, ranks = read_idx(path), (3, 4) if "images" in path.name else (1,)
        if array.ndim not in ranks:
            raise DataError(
                f"{path}: shape {array.shape}, expected {' or '.join(map(str, ranks))} "
                "axes"
            )
        channels_last = array.reshape(*array.shape[:3], -1)
        arrays.append(array.astype(np.int32) if ranks == (1,) else channels_last)
    classes = max(int(labels.max()) for labels in arrays[1::2]) + 1
    names = _CLASS_NAMES.get(name, tuple(map(str, range(classes))))
    source = f"IDX files in {folder}"
    return _checked(Dataset._make((name, *arrays, names, source, None)))


def _idx_path(folder: Path, file: str) -> Path:
    """Of the file, gzipped or not, also as train-images.idx3-ubyte or of 4 axes."""
    stem = file.partition("-idx")[0]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        if re.fullmatch(rf"{stem}[-.]idx[134]-ubyte(\.gz)?", name):
            return folder / name
    raise DataNotFoundError(f"{folder}: holds no {file.removesuffix('.gz')}[.gz]")


def _from_tfds(name: str, root: Path) -> Dataset:
    """Reads the newest version of a data set that TFDS prepared under `root`."""
    infos = (root / name).glob("[0-9]*.*.*/dataset_info.json")
    folders = {tuple(map(int, re.findall(r"\d+", p.parent.name))): p for p in infos}
    if not folders:
        raise DataNotFoundError(f"{root / name}: no data set prepared by TFDS")
    folder = folders[max(folders)].parent
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataNotFoundError(
            f"{folder}: found, but tensorflow-datasets is not installed (pip install "
            "'ds4nn_jax[experiments]')"
        ) from error
    builder = tfds.builder_from_directory(folder)
    try:
        names = tuple(builder.info.features["label"].names)
        rows = builder.as_data_source()
        arrays: list[np.ndarray] = []
        for split in ("train", "test"):
            pairs = [(row["image"], row["label"]) for row in rows[split]]
            images, labels = zip(*pairs, strict=True)
            arrays += np.stack(images), np.array(labels, np.int32)
    except (KeyError, AttributeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{folder}: {' '.join(str(error).split())}; needed are splits train and "
            "test with an image, of one shape, and a class label, prepared by TFDS as "
            "array_record (tfrecord can only be read with TensorFlow)"
        ) from error
    source = f"TFDS directory {folder}"
    return _checked(Dataset._make((name, *arrays, names, source, None)))


def _from_download(name: str) -> Dataset:
    """The official files, in the user's cache."""
    if name not in _OFFICIAL:
        raise DataNotFoundError("download: only of " + ", ".join(_OFFICIAL))
    try:
        import pooch
    except ImportError as error:
        raise DataNotFoundError(
            "download: pooch is not installed (pip install 'ds4nn_jax[experiments]')"
        ) from error
    url, digests = _OFFICIAL[name]
    folder = pooch.os_cache("ds4nn_jax") / name
    try:
        for file, digest in zip(_IDX_FILES, digests, strict=True):
            pooch.retrieve(url + file, f"sha256:{digest}", file, folder)
    except ValueError as error:
        raise DataError(f"download: damaged or changed: {error}") from error
    except OSError as error:
        raise DataNotFoundError(f"download from {url} failed: {error}") from error
    return _from_idx(name, folder)


def _checked(dataset: Dataset) -> Dataset:
    """The data set, when its arrays fit each other and its classes."""
    classes = len(dataset.class_names)
    for split, images, labels in (
        ("training", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        where = f"{dataset.source}: {split}"
        if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
            raise DataError(
                f"{where} images must be [N, H, W, C] uint8, got {images.dtype} "
                f"{images.shape}"
            )
        if labels.shape != images.shape[:1]:
            raise DataError(
                f"{where}: {len(images)} images, but labels of shape {labels.shape}"
            )
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.size:
            raise DataError(
                f"{where} labels must lie in 0 … {classes - 1}, got {wrong[0]}"
            )
    if dataset.train_images.shape[1:] != dataset.test_images.shape[1:]:
        raise DataError(
            f"{dataset.source}: training images {dataset.train_images.shape[1:]}, test "
            f"images {dataset.test_images.shape[1:]}"
        )
    return dataset
