"""Where each data set may lie, and how the files found there become a `Dataset`."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from prunus.core.errors import DataError, SpecError, UnknownNameError, require
from prunus.lab.data import download as net
from prunus.lab.data import files
from prunus.lab.data.dataset import Dataset, Split, digest, images, stratified

# Torchvision's folder for each IDX data set, and where Debian's package (if there is one) puts the same files.
_IDX = {
    "fashion-mnist": ("FashionMNIST", "/usr/share/datasets/fashion-mnist"),
    "mnist": ("MNIST", "/usr/share/datasets/mnist"),
}
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CIFAR = {
    "cifar10": ("cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", 1, 10),
    "cifar100": ("cifar-100-binary", ("train.bin",), "test.bin", 2, 100),
}
_PICKLED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
# Images in one official file; CIFAR-100 has all its training images in one.
CIFAR_RECORDS = {"data": 10_000, "train.bin": 50_000, "test.bin": 10_000}
# To tell the two MNISTs apart, whose files have the same names and sizes.
_FASHION_DIGEST = "023af56f2df4044caed94170ad349e6b65f89b25f8a145855f0c7aaaf8e51fa2"
_DEBIAN = {"fashion-mnist": "dataset-fashion-mnist"}

NAMES = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "svhn", "folder", "text")


def cache() -> Path:
    """Where downloads go unless a root is given: `$PRUNUS_DATA`, else `prunus/data` in the user's cache folder."""
    if chosen := os.environ.get("PRUNUS_DATA"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "prunus" / "data"


def roots(root: Path | None) -> list[Path]:
    """Folders that are searched: the one that was given, or else the cache and `./data`."""
    return [root] if root is not None else [cache(), Path("data")]


def _missing(name: str, looked: list[Path], *, how: str) -> DataError:
    places = ", ".join(str(p) for p in looked)
    return DataError(f"data set {name!r} was not found; looked in {places}. {how}")


def find_idx(name: str, root: Path | None) -> tuple[Path | None, list[Path]]:
    """The folder with the four IDX files (zipped or not), if there is one, and the folders that were looked at."""
    kind, system = _IDX[name]
    looked = [p for r in roots(root) for p in (r / kind / "raw", r / name, r)]
    if root is None:
        looked.append(Path(system))
    for folder in looked:
        if all((folder / f).is_file() or (folder / f"{f}.gz").is_file() for f in _IDX_FILES):
            # The two MNISTs have equal file names, so a bare folder of them counts only if it was pointed at.
            if folder in roots(None) and root is None:
                continue
            return folder, looked
    return None, looked


def load_idx(name: str, root: Path | None, *, download: bool, seed: int) -> Dataset:
    """MNIST or Fashion-MNIST: 28x28 grey images, ten classes."""
    folder, looked = find_idx(name, root)
    kind = _IDX[name][0]
    if folder is None and download:
        base = root or cache()
        target = base / kind / "raw"
        net.through_torchvision(kind, base, lambda scratch: scratch / kind / "raw", target)
        folder = target
    if folder is None:
        package = f", install the Debian package {_DEBIAN[name]}" if name in _DEBIAN else ""
        how = (
            f"Ask for a download (download=True, --download){package}, or point root at the folder with the IDX files."
        )
        raise _missing(name, looked, how=how)
    at = folder
    x, y, xt, yt = (files.read_idx(p if (p := at / f).is_file() else at / f"{f}.gz") for f in _IDX_FILES)
    for part, tensor, axes in (("images", x, 3), ("labels", y, 1), ("images", xt, 3), ("labels", yt, 1)):
        if tensor.ndim != axes:
            raise DataError(f"{folder}: the {part} have {tensor.ndim} axes, expected {axes}; the files are mixed up")
    train, test = (x.unsqueeze(1), y.long()), (xt.unsqueeze(1), yt.long())
    found = images(name, train, test, where=str(folder), seed=seed, num_classes=10)
    if name == "mnist" and found.digest == _FASHION_DIGEST:
        raise DataError(f"{folder} holds Fashion-MNIST, whose files are named like MNIST's: load 'fashion-mnist'")
    return found


def load_cifar(name: str, root: Path | None, *, download: bool, seed: int) -> Dataset:
    """CIFAR-10 or CIFAR-100 from the binary version of their authors: 32x32 colour images."""
    sub, train, test, labels, classes = _CIFAR[name]
    looked = [p for r in roots(root) for p in (r / sub, r)]
    folder = next((p for p in looked if all((p / f).is_file() for f in (*train, test))), None)
    if folder is None and download:
        folder = net.cifar(name, root or cache(), sub)
    if folder is None:
        how = (
            f"Ask for a download (download=True, --download), or fetch the binary version from {net.CIFAR_PAGE}, "
            f"unpack it, and point root at the folder that holds {sub}."
        )
        pickled = [r / _PICKLED[name] for r in roots(root) if (r / _PICKLED[name]).is_dir()]
        if pickled:
            how = f"{pickled[0]} is the Python version, made of pickles, which can run any code: it is not read. " + how
        raise _missing(name, looked, how=how)

    def count(file: str) -> int:
        return CIFAR_RECORDS["data" if file in train and len(train) > 1 else "test.bin" if file == test else file]

    a = files.read_records([folder / f for f in train], records=count(train[0]), labels=labels)
    b = files.read_records([folder / test], records=count(test), labels=labels)
    return images(name, a, b, where=str(folder), seed=seed, num_classes=classes)


def load_svhn(root: Path | None, *, download: bool, seed: int) -> Dataset:
    """SVHN, cropped digits: 32x32 colour images, ten classes, 73,257 of them to train on."""
    names = ("train_32x32.mat", "test_32x32.mat")
    looked = [p for r in roots(root) for p in (r / "SVHN", r / "svhn", r)]
    folder = next((p for p in looked if all((p / f).is_file() for f in names)), None)
    if folder is None and download:
        base = root or cache()
        splits = ({"split": "train"}, {"split": "test"})
        folder = net.through_torchvision("SVHN", base, lambda scratch: scratch, base / "SVHN", splits=splits)
    if folder is None:
        how = f"Ask for a download (download=True, --download), or point root at the folder with {' and '.join(names)}."
        raise _missing("svhn", looked, how=how)
    train, test = (files.read_svhn(folder / f) for f in names)
    return images("svhn", train, test, where=str(folder), seed=seed, num_classes=10)


def load_digits(*, seed: int) -> Dataset:
    """Scikit-learn's digits: 1,797 grey 8x8 images with values 0 to 16 (E. Alpaydin & C. Kaynak, UCI 1998).

    They come without a test part. A fifth of every class, always the same, is set apart as one.
    """
    sklearn = require("sklearn.datasets", extra="data", why="the digits come with it")
    bunch = sklearn.load_digits()
    x = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    test, train = stratified(y, 0.2, seed=0)
    where = "scikit-learn (load_digits)"
    return images(
        "digits", (x[train], y[train]), (x[test], y[test]), where=where, seed=seed, held_out=0.1, num_classes=10
    )


def load_folder(root: Path | None, *, size: int | None, channels: int, seed: int) -> Dataset:
    """A folder of images, one sub-folder per class, or the same below `train` and `test` (or `val`)."""
    if root is None:
        raise SpecError("an image folder needs its path: load('folder', root='path/to/images')")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give one with a sub-folder of images per class")
    side = 32 if size is None else size
    train = root / "train" if (root / "train").is_dir() else root
    test = next((root / n for n in ("test", "val", "valid") if (root / n).is_dir()), None) if train != root else None
    classes = files.class_names(train)
    if len(classes) < 2:
        found = f"found {len(classes)}" + (f" ({classes[0]})" if classes else "")
        raise DataError(f"{train} should have a sub-folder of images for each of at least two classes; {found}")
    x, y = files.read_folder(train, classes, side, channels=channels)
    if test is not None:
        extra = sorted(set(files.class_names(test)) - set(classes))
        if extra:
            raise DataError(f"{test} has classes that {train} lacks: {', '.join(extra)}")
        xt, yt = files.read_folder(test, [c for c in classes if (test / c).is_dir()], side, channels=channels)
        # Labels follow the classes of the training folder, of which the test folder may lack some.
        places = torch.tensor([i for i, c in enumerate(classes) if (test / c).is_dir()])
        pair = (xt, places[yt])
    else:
        chosen, rest = stratified(y, 0.2, seed=0)
        pair, x, y = (x[chosen], y[chosen]), x[rest], y[rest]
    return images(str(root), (x, y), pair, where=str(root), seed=seed, num_classes=len(classes))


def load_text(root: Path | None, *, pattern: str, length: int) -> Dataset:
    """Bytes of files in blocks of `length`, each with the bytes one further as targets: data for a decoder."""
    if root is None:
        raise SpecError("text needs the path of a file or folder: load('text', root='path', pattern='**/*.txt')")
    if not root.exists():
        raise DataError(f"{root} does not exist: give a text file, or a folder and a pattern such as '**/*.py'")
    if length < 1:
        raise SpecError(f"length must be at least 1 token, not {length}")
    parts = files.read_text(root, pattern, length)
    train, valid, test = (Split(x, y, kind="tokens") for x, y in parts)
    return Dataset(
        name=str(root),
        train=train,
        valid=valid,
        test=test,
        num_classes=256,
        in_channels=0,
        size=length,
        where=str(root),
        digest=digest(*(t for pair in parts for t in pair)),
        kind="tokens",
    )


def kind_of(path: Path) -> str:
    """Which of `NAMES` lies at a path, judged by its files.

    Raises:
        DataError: it does not exist, or holds nothing that is known.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; data is a name ({', '.join(NAMES[:6])}), a folder of images, or text")
    if path.is_file():
        return "text"
    for name, (sub, *_) in _CIFAR.items():
        if path.name == sub or (path / sub).is_dir():
            return name
    if (path / "train_32x32.mat").is_file():
        return "svhn"
    if any((path / f"{_IDX_FILES[0]}{end}").is_file() for end in ("", ".gz")):
        return "mnist" if "fashion" not in str(path).lower() else "fashion-mnist"
    for name, (kind, _) in _IDX.items():
        if (path / kind / "raw").is_dir():
            return name
    if files.class_names(path / "train" if (path / "train").is_dir() else path):
        return "folder"
    if any(f.suffix in {".txt", ".py", ".md"} for f in path.rglob("*")):
        return "text"
    raise DataError(
        f"{path} holds nothing that is known: IDX files, binary CIFAR, SVHN's .mat files, "
        "a folder of images per class, or text"
    )


def unknown(name: str) -> UnknownNameError:
    """The error for a name that is neither a data set nor a path."""
    return UnknownNameError("data set", name, NAMES)
