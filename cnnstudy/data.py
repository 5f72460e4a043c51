"""CIFAR-10 as tensors in memory, and its augmentation, a batch at a time.

Sizes up to 10,000 / 4,000 come from the sample in data/cifar10-mini; larger ones from the complete set, which has to
be fetched first (`cnnstudy data fetch cifar10`). Both are hashed before use. Either way the classes take turns, image i
has class i % 10, and within a class the authors' order is kept: a smaller set is the beginning of every larger one.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnnstudy.archives import Arrays, digest
from cnnstudy.config import Refused, choose
from cnnstudy.fetch import read_cifar10

SAMPLE = Path(__file__).parents[1] / "data" / "cifar10-mini"
IN_SAMPLE = {"train": 10_000, "test": 4_000}
IN_ALL = {"train": 50_000, "test": 10_000}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHIFT = 4  # pixels, each way: He et al. (2016), section 4.2


@dataclass(frozen=True)
class CifarConfig:
    """How much of CIFAR-10: `train` and `test` count images, the same number of each class.

    labels="random" permutes the training labels by the seed, so that they say nothing about the images while each class
    stays as frequent as it was (Zhang et al. 2017, "Understanding deep learning requires rethinking generalization").
    """

    train: int = 10_000
    test: int = 4_000
    labels: str = "true"

    def __post_init__(self) -> None:
        for split, most in IN_ALL.items():
            size = getattr(self, split)
            if isinstance(size, bool) or int(size) != size or not 10 <= size <= most or size % 10:
                raise Refused(f"data.{split}={size!r} is not valid; CIFAR-10 has multiples of 10 from 10 to {most:,}")
        choose("data.labels", self.labels, ("true", "random"))


@dataclass(frozen=True)
class Data:
    """Images float32 (N, 3, 32, 32) in [0, 1], channels_last; labels int64 (N,). Shared: only read them."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def load(cfg: CifarConfig, device: str | torch.device = "cpu", seed: int = 0) -> Data:
    """The images and labels on `device`; `seed` matters for random labels only.

    Raises Refused if a part of the sample is missing or damaged, or the complete set is needed and not fetched yet.
    """
    x_train, y_train = _split("train", int(cfg.train), str(device))
    x_test, y_test = _split("test", int(cfg.test), str(device))
    if cfg.labels == "random":
        order = torch.randperm(len(y_train), generator=torch.Generator().manual_seed(seed))
        y_train = y_train[order.to(y_train.device)]
    return Data(x_train, y_train, x_test, y_test)


def pooled(data: Data, factor: int = 2) -> Data:
    """The same images at a ``factor`` times lower resolution, by averaging: (N, 3, 32 / factor, 32 / factor)."""
    x_train, x_test = (
        torch.nn.functional.avg_pool2d(x, factor).contiguous(memory_format=torch.channels_last) for x in (data.x_train, data.x_test)
    )
    return Data(x_train, data.y_train, x_test, data.y_test)


@lru_cache(maxsize=8)
def _split(split: str, size: int, device: str) -> tuple[Tensor, Tensor]:
    pixels, labels = (_from_sample if size <= IN_SAMPLE[split] else _from_all)(split, size)
    # scaled on the CPU: a GPU divides by a constant through its reciprocal, which differs in the last bit
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    return images.to(device), torch.from_numpy(labels).long().to(device)


def interleaved(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices (10 * per_class,) of the first images of each class, taking turns: entry i is of class i % 10."""
    return np.stack([np.flatnonzero(labels == c)[:per_class] for c in range(10)], axis=1).ravel()


@lru_cache(maxsize=1)
def _all() -> Arrays:
    return read_cifar10()


def _from_all(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    arrays = _all()
    order = interleaved(arrays[f"y_{split}"], size // 10)
    return arrays[f"x_{split}"][order], arrays[f"y_{split}"][order]


def _from_sample(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The sample's first images, uint8 (size, 32, 32, 3), and labels, uint8 (size,); decodes only the tiles needed."""
    manifest = _manifest()
    rows, columns = manifest["tile"]["rows"], manifest["tile"]["columns"]
    parts = []
    for tile in manifest[split]["tiles"][: -(-size // (rows * columns))]:
        path = SAMPLE / tile["file"]
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            pixels = pixels.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
        except (OSError, ValueError) as error:
            raise _damaged(path) from error
        if digest(pixels) != tile["sha256_pixels"]:
            raise _damaged(path)
        parts.append(pixels)
    return np.concatenate(parts)[:size], _sample_labels(split, manifest[split]["labels"])[:size]


def _manifest() -> dict:
    path = SAMPLE / "MANIFEST.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _sample_labels(split: str, entry: dict) -> np.ndarray:
    path = SAMPLE / entry["file"]
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if hashlib.sha256(text.encode()).hexdigest() != entry["sha256"]:
        raise _damaged(path)
    return np.array([row["label"] for row in csv.DictReader(text.splitlines())], np.uint8)


def _damaged(path: Path) -> Refused:
    state = "damaged" if path.exists() else "missing"
    return Refused(f"{path} is {state}; restore it with git (git checkout -- data/cifar10-mini)")


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 4 pixels each way, its edge filled by reflection, and mirrored with probability 1/2.

    x: (N, C, H, W), best channels_last. Returns a new channels_last tensor on x's device. The draws are made on the
    generator's device: with a generator on the CPU every device gets the same ones.
    """
    return shifted(x, *_draw(len(x), generator, x.device))


def shifted(x: Tensor, down: Tensor, right: Tensor, mirror: Tensor, which: Tensor | None = None) -> Tensor:
    """Images x[which] moved by `down` and `right` pixels (int64 (N,), |.| < H, W), mirrored before that where `mirror`.

    One gather of whole pixels. On one CPU core it takes 4 us an image; an index into windows of a padded copy takes 10,
    slices grouped by shift take 25.
    """
    n, (channels, height, width) = len(down), x.shape[1:]
    rows = _reflected(down, height)
    columns = _reflected(right, width)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns)
    images = torch.arange(n, device=x.device) if which is None else which
    pixels = ((images[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
    flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
    return flat.index_select(0, pixels.view(-1)).view(n, height, width, channels).permute(0, 3, 1, 2)


def _reflected(shift: Tensor, size: int) -> Tensor:
    """(N, size): where each position of a shifted row comes from; positions beyond an edge are mirrored at it."""
    source = (torch.arange(size, device=shift.device) - shift[:, None]).abs()
    return (size - 1) - ((size - 1) - source).abs()


def _draw(n: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    shifts = torch.randint(-SHIFT, SHIFT + 1, (2, n), generator=generator, device=generator.device)
    mirror = torch.randint(0, 2, (n,), generator=generator, device=generator.device).bool()
    shifts = shifts.to(device)
    return shifts[0], shifts[1], mirror.to(device)


def batches(
    data: Data, batch: int, generator: torch.Generator, augment: bool = True, drop_last: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of the training images in a new random order: (x (batch, 3, 32, 32) channels_last, y (batch,)).

    The last, short batch is left out unless `drop_last` is False. Raises Refused if not one batch would come of it.
    """
    n = len(data.x_train)
    if batch < 1 or (drop_last and batch > n):
        raise Refused(f"batch={batch} is not valid; there are {n:,} training images")
    return _epoch(data, batch, generator, augment, n - n % batch if drop_last else n)


def _epoch(data: Data, batch: int, generator: torch.Generator, augment: bool, end: int) -> Iterator[tuple[Tensor, Tensor]]:
    x = data.x_train.contiguous(memory_format=torch.channels_last)
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    for start in range(0, end, batch):
        which = order[start : min(start + batch, end)]
        if augment:
            images = shifted(x, *_draw(len(which), generator, x.device), which=which)
        else:
            images = x.permute(0, 2, 3, 1).index_select(0, which).permute(0, 3, 1, 2)
        yield images, data.y_train[which]
