"""Read CIFAR-10 from folders and archives that are not to be trusted, and check it against pinned hashes.

Two layouts are known: the authors' pickled batches, and the npm package's PNG sprites with lists of labels. Archives
are unpacked with tarfile's `data` filter, pickles are read without importing anything they name, and whatever the
layout, the decoded images and labels must hash to `PINS`:

    x_train, x_test   uint8 (50000, 32, 32, 3) and (10000, 32, 32, 3), C-contiguous, in the authors' order
    y_train, y_test   uint8 (50000,) and (10000,), 0..9

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). No torch here.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile
import tempfile
import urllib.error
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from cnnstudy.config import Refused

Arrays = dict[str, np.ndarray]

PINS = {
    "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BATCH = 10_000  # images in each of the six batches
ARCHIVE_LIMIT = 1 << 30  # bytes an archive may unpack to; the true ones take about 190 MB


def digest(array: np.ndarray) -> str:
    """sha256 of an array's bytes in C order, as hex."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def verified(arrays: Arrays, where: str) -> Arrays:
    """The same arrays if each hashes to its pin; raises Refused otherwise."""
    for name, pin in PINS.items():
        found = digest(arrays[name])
        if found != pin:
            raise Refused(f"wrong data in {where}: {name} has sha256 {found[:16]}..., CIFAR-10 has {pin[:16]}...")
    return arrays


def decode(source: Path, scratch: Path, progress: bool) -> Arrays:
    """Arrays from a folder or archive of either layout; raises Refused if it is neither or is damaged."""
    given = source
    if source.is_file():
        source = _unpack(source, scratch)
    elif not source.is_dir():
        raise Refused(f"no CIFAR-10 at {source}: there is no such folder or archive")
    for folder in (source, source / "cifar-10-batches-py", source / "package"):
        for suffix, read in (("", _read_pickled), (".png", _read_sprite)):
            if all((folder / f"{name}{suffix}").is_file() for name in BATCHES):
                bar = tqdm(BATCHES, desc="decoding", unit="batch", disable=not progress)
                batches = [read(folder / f"{name}{suffix}") for name in bar]
                labels = [y for _, y in batches] if suffix == "" else _read_label_lists(folder)
                return {
                    "x_train": np.concatenate([x for x, _ in batches[:5]]),
                    "y_train": np.concatenate(labels[:-1]),
                    "x_test": batches[5][0],
                    "y_test": labels[-1],
                }
    raise Refused(f"no complete CIFAR-10 in {given}: valid are the authors' python batches or the npm package's PNG sprites")


def _unpack(archive: Path, scratch: Path) -> Path:
    """Extract a tar archive with the `data` filter: no member may leave the folder, nor be a device or odd link."""
    folder = Path(tempfile.mkdtemp(prefix="unpacked-", dir=scratch))
    try:
        with tarfile.open(archive) as tar:
            size = 0
            for member in tar:
                size += member.size
                if size > ARCHIVE_LIMIT:
                    raise Refused(f"{archive.name} unpacks to more than {ARCHIVE_LIMIT:,} bytes: not CIFAR-10")
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise Refused(f"unsafe archive {archive.name}: {why(error)}") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise Refused(f"{archive.name} is not a whole tar archive: {why(error)}") from error
    return folder


class _BatchUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, bytes and NumPy arrays; anything else that is named is refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")  # NumPy 2 moved what old pickles name
        allowed: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _plain_dtype,
            ("_codecs", "encode"): _latin1_bytes,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")
        return allowed[module, name]


def _empty_array(*_: Any) -> np.ndarray:
    return np.empty(0, np.uint8)  # the pickle's state fills it in; the size it asks for is not trusted


def _plain_dtype(code: Any, *_: Any) -> np.dtype:
    return np.dtype(code)  # the flags that old pickles add are integers, which NumPy 2.4 warns of


def _latin1_bytes(text: str, _: str = "latin1") -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes into an old pickle


def _read_pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One of the authors' batches: pixels are stored as rows of 3072 = 3 x 32 x 32 (colour planes first)."""
    try:
        with path.open("rb") as file:
            batch = _BatchUnpickler(file, encoding="bytes").load()
        rows, labels = batch[b"data"], _labels(batch[b"labels"], path.name)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != (BATCH, 3072):
            raise ValueError(f"its data are not {BATCH} rows of 3072 bytes")
    except Exception as error:  # a hostile pickle may raise anything
        raise Refused(f"{path.name} is not a CIFAR-10 batch: {why(error)}") from error
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _read_sprite(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One sprite: row i of the picture is image i, 1024 pixels of 32 x 32. The labels are in files of their own."""
    try:
        with Image.open(path) as picture:
            if picture.format != "PNG" or picture.size != (1024, BATCH):
                raise ValueError(f"it is {picture.format} of {picture.size}, not PNG of {(1024, BATCH)}")
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"{path.name} is not a CIFAR-10 sprite: {why(error)}") from error
    return pixels.reshape(-1, 32, 32, 3), np.empty(0, np.uint8)


def _read_label_lists(folder: Path) -> list[np.ndarray]:
    labels = []
    for name in ("train_lables.json", "test_lables.json"):  # the package's own spelling
        try:
            labels.append(_labels(json.loads((folder / name).read_text()), name))
        except (OSError, ValueError) as error:
            raise Refused(f"{name} is not a list of labels: {why(error)}") from error
    return labels


def _labels(values: Any, where: str) -> np.ndarray:
    if not isinstance(values, list) or not all(isinstance(value, int) and 0 <= value <= 9 for value in values):
        raise ValueError(f"{where}: labels are a list of integers 0..9")
    return np.array(values, np.uint8)


def why(error: BaseException) -> str:
    """The reason of an error, on one line and not endless."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join((str(reason) or type(reason).__name__).split())[:300]
