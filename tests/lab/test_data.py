"""Readers parse files that the tests write, name what is wrong with broken ones, and never leave half a download."""

import contextlib
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from prunus.core.errors import DataError, SpecError, UnknownNameError
from prunus.lab import data
from prunus.lab.data import download, files, sources
from prunus.lab.data.dataset import statistics, stratified

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    system = {name: (kind, str(tmp_path / "system" / name)) for name, (kind, _) in sources._IDX.items()}
    monkeypatch.setattr(sources, "_IDX", system)


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, *, zipped: bool, n: int = 40, m: int = 20) -> list[np.ndarray]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (n, 28, 28)),
        np.arange(n) % 10,
        rng.integers(0, 256, (m, 28, 28)),
        np.arange(m) % 10,
    ]
    for name, array in zip(_IDX, arrays, strict=True):
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", ["FashionMNIST/raw", "fashion-mnist", "."])
def test_fashion_mnist_in_every_layout(tmp_path: Path, zipped: bool, layout: str) -> None:
    root = tmp_path / "root"
    arrays = write_mnist(root / layout, zipped=zipped)
    found = data.load("fashion-mnist", root)
    assert (len(found.train), len(found.valid), len(found.test)) == (30, 10, 20)
    assert (found.in_channels, found.size, found.num_classes) == (1, 28, 10)
    assert torch.equal(found.test.x[:, 0], torch.from_numpy(arrays[2]).to(torch.uint8))
    assert torch.equal(found.test.y, torch.from_numpy(arrays[3]))
    assert found.test.x.dtype == torch.uint8 and found.test.y.dtype == torch.int64


def test_system_package_is_found_and_default_says_so(tmp_path: Path) -> None:
    dataset, sentence = data.default()
    assert dataset.name == "digits" and "Fashion-MNIST is not on this machine" in sentence
    write_mnist(tmp_path / "system" / "fashion-mnist", zipped=True)
    dataset, sentence = data.default()
    assert dataset.name == "fashion-mnist" and dataset.where in sentence and "system" in dataset.where


def test_validation_split_depends_on_the_seed_and_nothing_else(tmp_path: Path) -> None:
    write_mnist(tmp_path / "r", zipped=False)
    a, b, c = (data.load("mnist", tmp_path / "r", seed=s) for s in (0, 0, 1))
    assert torch.equal(a.valid.x, b.valid.x) and torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.valid.x, c.valid.x)
    assert a.digest == b.digest == c.digest and len(a.digest) == 64
    assert torch.equal(a.test.x, c.test.x)
    assert sorted(a.valid.y.tolist()) == list(range(10))


def test_one_changed_pixel_changes_the_digest(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path / "r", zipped=False)
    before = data.load("mnist", tmp_path / "r").digest
    arrays[0][0, 0, 0] ^= 1
    (tmp_path / "r" / _IDX[0]).write_bytes(idx(arrays[0]))
    assert data.load("mnist", tmp_path / "r").digest != before


def test_missing_data_set_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cache.*dataset-fashion-mnist") as caught:
        data.load("fashion-mnist")
    assert "--download" in str(caught.value) and "system" in str(caught.value)
    for name in ("mnist", "cifar10", "cifar100", "svhn"):
        with pytest.raises(DataError, match=f"{name}.*looked in .*nowhere"):
            data.load(name, tmp_path / "nowhere")


def test_truncated_idx_names_file_and_sizes(tmp_path: Path) -> None:
    write_mnist(tmp_path / "r", zipped=False)
    path = tmp_path / "r" / _IDX[0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=f"{_IDX[0]}.*found {16 + 40 * 784 - 5} bytes, expected {16 + 40 * 784} "):
        data.load("mnist", tmp_path / "r")


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path / "r", zipped=True)
    path = tmp_path / "r" / f"{_IDX[0]}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut off"):
        data.load("mnist", tmp_path / "r")
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="damaged"):
        data.load("mnist", tmp_path / "r")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=_IDX[0]):
        data.load("mnist", tmp_path / "r")


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01\0\0\0\0", b"GIF89a", b"\0\0\x08\x09"])
def test_not_idx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match="no IDX file"):
        files.read_idx(tmp_path / "f")


def test_counts_and_labels_are_checked(tmp_path: Path) -> None:
    write_mnist(tmp_path / "r", zipped=False)
    (tmp_path / "r" / _IDX[1]).write_bytes(idx(np.zeros(39)))
    with pytest.raises(DataError, match="40 train images but 39 labels"):
        data.load("mnist", tmp_path / "r")
    (tmp_path / "r" / _IDX[1]).write_bytes(idx(np.full(40, 11)))
    with pytest.raises(DataError, match="expected 0 to 9"):
        data.load("mnist", tmp_path / "r")
    (tmp_path / "r" / _IDX[1]).write_bytes(idx(np.zeros((40, 1))))
    with pytest.raises(DataError, match="axes"):
        data.load("mnist", tmp_path / "r")


def write_cifar(root: Path, name: str, records: int) -> np.ndarray:
    sub, train, test, labels, classes = sources._CIFAR[name]
    (root / sub).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for file in (*train, test):
        table = rng.integers(0, 256, (records, labels + 3072)).astype(np.uint8)
        table[:, :labels] = (np.arange(records) % classes)[:, None]
        if labels == 2:
            table[:, 0] = 0
        (root / sub / file).write_bytes(table.tobytes())
    return table


@pytest.mark.parametrize(("name", "files_", "classes"), [("cifar10", 5, 10), ("cifar100", 1, 100)])
def test_binary_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files_: int, classes: int) -> None:
    monkeypatch.setattr(sources, "CIFAR_RECORDS", {"data": 200, "train.bin": 200, "test.bin": 200})
    table = write_cifar(tmp_path / "c", name, 200)
    found = data.load(name, tmp_path / "c")
    assert len(found.train) + len(found.valid) == 200 * files_ and found.num_classes == classes
    assert torch.equal(found.test.x[7], torch.from_numpy(table[7, -3072:].reshape(3, 32, 32)))
    assert found.test.y.tolist() == table[:, -3073].tolist()
    sub = sources._CIFAR[name][0]
    for path in (tmp_path / "c", tmp_path / "c" / sub):
        assert data.load(path).digest == found.digest
    path = tmp_path / "c" / sub / sources._CIFAR[name][2]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"\.bin is cut off.*found 1000 bytes, expected"):
        data.load(name, tmp_path / "c")


def test_pickled_cifar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"pickles.*binary version"):
        data.load("cifar10", tmp_path)


def test_svhn(tmp_path: Path) -> None:
    io_ = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(2)
    for name in ("train", "test"):
        x = rng.integers(0, 256, (32, 32, 3, 24)).astype(np.uint8)
        y = (np.arange(24) % 10 + 1).astype(np.uint8)[:, None]
        io_.savemat(tmp_path / f"{name}_32x32.mat", {"X": x, "y": y})
    found = data.load("svhn", tmp_path)
    assert torch.equal(found.test.x[5], torch.from_numpy(x[:, :, :, 5]).permute(2, 0, 1))
    assert found.test.y[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"test_32x32\.mat \(900 bytes\)"):
        data.load("svhn", tmp_path)
    io_.savemat(path, {"Z": x})
    with pytest.raises(DataError, match="no variable X and y"):
        data.load("svhn", tmp_path)


def write_pictures(root: Path, classes: dict[str, int], n: int, size: tuple[int, int] = (12, 10)) -> None:
    pil = pytest.importorskip("PIL.Image")
    for name, grey in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pil.new("RGB", size, (grey, grey, grey + i)).save(root / name / f"{i}.png")


def test_image_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", {"cat": 10, "dog": 200}, 10)
    found = data.load("folder", tmp_path / "p", size=8)
    assert (len(found.train), len(found.valid), len(found.test)) == (14, 2, 4)
    assert found.train.x.shape[1:] == (3, 8, 8) and found.num_classes == 2
    for x, y in zip(found.train.x, found.train.y, strict=True):
        assert x[0].unique().tolist() == [10 if y == 0 else 200]
    assert data.load(tmp_path / "p", size=8).digest == found.digest
    assert data.load(tmp_path / "p", size=8, channels=1).in_channels == 1


def test_image_folder_with_its_own_test_part(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p" / "train", {"a": 0, "b": 100, "c": 200}, 6)
    write_pictures(tmp_path / "p" / "test", {"a": 0, "c": 200}, 2)
    found = data.load(tmp_path / "p", size=8)
    assert found.test.y.tolist() == [0, 0, 2, 2]
    (tmp_path / "p" / "test" / "c" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png cannot be decoded"):
        data.load(tmp_path / "p", size=8)
    write_pictures(tmp_path / "p" / "test", {"z": 1}, 1)
    with pytest.raises(DataError, match="lacks: z"):
        data.load(tmp_path / "p", size=8)


def test_image_folder_needs_two_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", {"only": 10}, 3)
    with pytest.raises(DataError, match=r"two classes; found 1 \(only\)"):
        data.load("folder", tmp_path / "p")


def test_text_targets_are_the_next_tokens(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "b.py").write_bytes(bytes(range(1, 101)) * 3)
    (tmp_path / "t" / "a.py").write_bytes(bytes(range(101, 201)))
    (tmp_path / "t" / "c.txt").write_text("not matched")
    found = data.load("text", tmp_path / "t", length=8)
    assert (found.kind, found.num_classes, found.in_channels, found.size) == ("tokens", 256, 0, 8)
    assert found.train.x[0].tolist() == list(range(101, 109)) and found.train.y[0].tolist() == list(range(102, 110))
    for part in (found.train, found.valid, found.test):
        assert torch.equal(part.x[:, 1:], part.y[:, :-1])
    inputs, targets = next(iter(data.Loader(found.train, 4)))
    assert inputs.dtype == targets.dtype == torch.int64
    assert data.load(tmp_path / "t", length=8).digest == found.digest
    assert data.load(tmp_path / "t" / "b.py", length=8).digest != found.digest
    with pytest.raises(DataError, match="no file that matches"):
        data.load("text", tmp_path / "t", pattern="*.md")
    with pytest.raises(DataError, match="too few"):
        data.load("text", tmp_path / "t", length=100)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "cifar-10"}, UnknownNameError, "cifar10"),
        ({"name": "./nowhere"}, DataError, "does not exist"),
        ({"name": "./"}, DataError, "nothing that is known"),
        ({"name": "folder"}, SpecError, "needs its path"),
        ({"name": "text"}, SpecError, "needs the path"),
        ({"name": "text", "root": "nowhere"}, DataError, "does not exist"),
        ({"name": "digits", "size": 0}, SpecError, "at least 1 pixel"),
        ({"name": "digits", "channels": 2}, SpecError, "grey"),
    ],
)
def test_bad_requests(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        data.load(**arguments)


def test_digits_split_is_whole_and_disjoint() -> None:
    pytest.importorskip("sklearn")
    found = data.load("digits")
    parts = (found.train, found.valid, found.test)
    assert sum(map(len, parts)) == 1797
    assert all(set(p.y.tolist()) == set(range(10)) for p in parts)
    assert found.train.x.dtype == torch.uint8 and int(found.train.x.max()) == 16
    inputs = found.train.inputs(found.train.x)
    assert abs(float(inputs.mean())) < 1e-4 and abs(float(inputs.std(unbiased=False)) - 1) < 1e-4


def test_statistics_equal_a_direct_computation() -> None:
    x = torch.randint(256, (7, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = statistics(x)
    assert torch.allclose(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(std.double(), x.double().std((0, 2, 3), unbiased=False), rtol=1e-6)
    assert statistics(torch.full((2, 1, 2, 2), 5, dtype=torch.uint8))[1].tolist() == [1.0]


def test_stratified_takes_the_fraction_of_each_class() -> None:
    y = torch.tensor([0] * 20 + [1] * 10 + [2])
    chosen, rest = stratified(y, 0.2, seed=0)
    assert y[chosen].bincount(minlength=3).tolist() == [4, 2, 0]
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(31))


@contextlib.contextmanager
def server(content: bytes, *, claim: int | None = None) -> Iterator[str]:
    """Serves `content` at every path of a local address, claiming a length that may be false."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if claim is None else claim))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/file"
        finally:
            running.shutdown()
            thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_fetch_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "d" / "file"
    with server(b"whole") as url:
        download.fetch(url, target, md5=md5(b"whole"))
    assert target.read_bytes() == b"whole"
    with server(b"half", claim=10) as url, pytest.raises(DataError, match=r"(?s)4 bytes.*nothing was kept"):
        download.fetch(url, target, md5=md5(b"whole"))
    with server(b"other") as url, pytest.raises(DataError, match="MD5"):
        download.fetch(url, target, md5=md5(b"whole"))
    with server(b"") as url:
        gone = url
    with pytest.raises(DataError, match="failed after 0 bytes"):
        download.fetch(gone, target, md5=md5(b"whole"))
    assert target.read_bytes() == b"whole"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_cifar_download_unpacks_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CIFAR_RECORDS", {"data": 20, "train.bin": 20, "test.bin": 20})
    write_cifar(tmp_path / "made", "cifar10", 20)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    with server(packed.getvalue()) as url:
        monkeypatch.setattr(download, "_CIFAR", {"cifar10": (url, md5(packed.getvalue()))})
        found = data.load("cifar10", tmp_path / "root", download=True)
    assert len(found.test) == 20
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["cifar-10-batches-bin"]


def test_archive_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("../escaped")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="cannot be unpacked"):
        download.unpack(tmp_path / "evil.tar.gz", tmp_path / "root", "folder")
    assert not (tmp_path / "escaped").exists() and list((tmp_path / "root").iterdir()) == []


def test_interrupted_torchvision_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, root: str, download: bool) -> None:
            (Path(root) / "FashionMNIST" / "raw").mkdir(parents=True)
            (Path(root) / "FashionMNIST" / "raw" / _IDX[0]).write_bytes(b"half")
            raise RuntimeError("connection reset")

    class Whole:
        def __init__(self, root: str, download: bool) -> None:
            write_mnist(Path(root) / "FashionMNIST" / "raw", zipped=True)

    class Module:
        FashionMNIST: type = Broken

    monkeypatch.setattr(download, "require", lambda *_, **__: Module)
    with pytest.raises(DataError, match=r"connection reset.*nothing was kept"):
        data.load("fashion-mnist", download=True)
    assert list((tmp_path / "cache").iterdir()) == []
    Module.FashionMNIST = Whole
    dataset, sentence = data.default(download=True)
    assert len(dataset.test) == 20 and "was downloaded to" in sentence


def test_cannot_write_where_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        data.load("cifar10", tmp_path / "file" / "root", download=True)
