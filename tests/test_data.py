"""The sample is the beginning of CIFAR-10; setups beyond it need the complete set; augmentation does what it says."""

from __future__ import annotations

import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnstudy import data as data_module
from cnnstudy.archives import digest
from cnnstudy.config import Refused
from cnnstudy.data import SAMPLE, CifarConfig, Data, augment, batches, interleaved, load, shifted

# Written down here as well as in the manifest, so that tiles and manifest can't drift together.
PINS = {
    "train": (10_000, "5106942d68f357dc0a6e685c2caae2142bb63438d4b5d90f789c312f9c18d109"),
    "test": (4_000, "9f91f9b505f208b18036e361a2e1f2b13f17198b47524b4da72ce2bf83b2d5c4"),
}


@pytest.fixture(autouse=True)
def fresh_cache():
    """Tests that point at other files must neither see nor leave images in the process's cache."""
    data_module._all.cache_clear()
    yield
    data_module._all.cache_clear()


@pytest.fixture
def sample_copy(tmp_path, monkeypatch) -> Path:
    """A copy of the sample that may be damaged; what was cached is forgotten before and after."""
    copy = tmp_path / "cifar10-mini"
    shutil.copytree(SAMPLE, copy)
    monkeypatch.setattr(data_module, "SAMPLE", copy)
    data_module._split.cache_clear()
    yield copy
    data_module._split.cache_clear()


def small() -> Data:
    return load(CifarConfig(train=2_000, test=1_000))


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


# The sample


@pytest.mark.parametrize("split", PINS)
def test_sample_hashes_to_its_pins(split):
    size, pin = PINS[split]
    pixels, labels = data_module._from_sample(split, size)
    assert digest(pixels) == pin
    assert np.array_equal(labels, np.arange(size) % 10)


@pytest.mark.parametrize("split", PINS)
def test_sample_keeps_the_authors_order_within_a_class(split):
    with (SAMPLE / f"{split}.csv").open() as file:
        indices = np.array([int(row["original_index"]) for row in csv.DictReader(file)])
    assert len(indices) == PINS[split][0] == len(set(indices))
    assert all((np.diff(indices[c::10]) > 0).all() for c in range(10))


def test_interleaved_takes_the_first_of_each_class_in_turn():
    labels = np.array([1, 1, 0, 3, 2, 1, 0, 2, 3, 0] + list(range(4, 10)) * 2)
    order = interleaved(labels, 2)
    assert labels[order].tolist() == list(range(10)) * 2
    assert order[:4].tolist() == [2, 0, 4, 3] and order[10:14].tolist() == [6, 1, 7, 8]


def test_sample_is_decoded_fast():
    data_module._from_sample("test", 2_000)  # first call warms the file cache
    start = time.process_time()
    data_module._from_sample("test", 4_000)
    assert time.process_time() - start < 2.0  # of one core, for 4 of 14 thousand images: loose, others run beside


def test_load_gives_what_the_contract_says():
    found = small()
    for x, y, n in ((found.x_train, found.y_train, 2_000), (found.x_test, found.y_test, 1_000)):
        assert x.shape == (n, 3, 32, 32) and x.dtype == torch.float32 and is_channels_last(x)
        assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.2
        assert y.dtype == torch.int64 and y.bincount().tolist() == [n // 10] * 10


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    less, more = load(CifarConfig(train=100, test=50)), small()
    assert torch.equal(less.x_train, more.x_train[:100]) and torch.equal(less.x_test, more.x_test[:50])


def test_images_are_read_once_in_a_process():
    assert small().x_train is small().x_train


@pytest.mark.parametrize("sizes", [{"train": 50}, {"test": 70}, {"train": 50, "test": 70}])
def test_a_part_missing_is_refused_by_name(sample_copy, sizes):
    (sample_copy / "test-0.webp").unlink()
    (sample_copy / "train-0.webp").unlink()
    with pytest.raises(Refused, match=r"(train|test)-0\.webp is missing; restore it with git"):
        load(CifarConfig(**sizes))


def test_a_cut_tile_is_refused(sample_copy):
    tile = sample_copy / "train-0.webp"
    tile.write_bytes(tile.read_bytes()[:100_000])
    with pytest.raises(Refused, match=r"train-0\.webp is damaged"):
        load(CifarConfig(train=50, test=50))


def test_a_tile_of_other_images_is_refused(sample_copy):
    shutil.copy(sample_copy / "train-1.webp", sample_copy / "train-0.webp")
    with pytest.raises(Refused, match=r"train-0\.webp is damaged"):
        load(CifarConfig(train=50, test=50))


def test_changed_labels_are_refused(sample_copy):
    table = sample_copy / "test.csv"
    table.write_text(table.read_text().replace("\n0,", "\n1,", 1))
    with pytest.raises(Refused, match=r"test\.csv is damaged"):
        load(CifarConfig(train=50, test=50))


@pytest.mark.parametrize("text", ["", "{"])
def test_a_damaged_manifest_is_refused(sample_copy, text):
    (sample_copy / "MANIFEST.json").write_text(text)
    with pytest.raises(Refused, match=r"MANIFEST\.json is damaged"):
        load(CifarConfig(train=50, test=50))


def test_manifest_names_every_tile_and_nothing_else():
    manifest = json.loads((SAMPLE / "MANIFEST.json").read_text())
    named = {tile["file"] for split in PINS for tile in manifest[split]["tiles"]}
    assert named == {path.name for path in SAMPLE.glob("*.webp")} and len(named) == 7


# Setups


@pytest.mark.parametrize("field", [{"train": 2_005}, {"train": 60_000}, {"train": 0}, {"train": -10}, {"test": 10_010},
                                   {"test": 5}, {"train": True}, {"train": 12.5}, {"labels": "shuffled"}])  # fmt: skip
def test_bad_setups_are_refused_in_one_line(field):
    with pytest.raises(Refused, match="data") as caught:
        CifarConfig(**field)
    assert "\n" not in str(caught.value) and str(next(iter(field.values()))) in str(caught.value)


@pytest.mark.parametrize("cfg", [CifarConfig(train=10_010, test=10), CifarConfig(train=10, test=4_010)])
def test_beyond_the_sample_the_fetch_command_is_named(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNSTUDY_CACHE", str(tmp_path))
    with pytest.raises(Refused, match="fetch it with: cnnstudy data fetch cifar10"):
        load(cfg)
    assert not list(tmp_path.iterdir())


def test_random_labels_are_a_permutation_by_the_seed():
    true, cfg = small(), CifarConfig(train=2_000, test=1_000, labels="random")
    one, same, other = load(cfg, seed=1), load(cfg, seed=1), load(cfg, seed=2)
    assert torch.equal(one.y_train, same.y_train) and not torch.equal(one.y_train, other.y_train)
    assert one.y_train.bincount().tolist() == [200] * 10
    assert (one.y_train == true.y_train).float().mean() < 0.15  # a tenth agrees by chance
    assert torch.equal(one.y_test, true.y_test) and one.x_train is true.x_train


# Augmentation


def reference(image: Tensor, down: int, right: int, mirror: bool) -> Tensor:
    """One image (C, H, W), the slow and plain way: mirror, pad by reflection, cut out."""
    if mirror:
        image = image.flip(-1)
    pad = 4
    padded = torch.nn.functional.pad(image[None], (pad,) * 4, mode="reflect")[0]
    _, height, width = image.shape
    return padded[:, pad - down : pad - down + height, pad - right : pad - right + width]


def test_shifted_agrees_with_the_slow_way_for_every_shift():
    every = [(d, r, m) for d in range(-4, 5) for r in range(-4, 5) for m in (False, True)]
    x = small().x_train[: len(every)]
    down, right, mirror = (torch.tensor(column) for column in zip(*every, strict=True))
    found = shifted(x, down, right, mirror)
    expected = torch.stack([reference(image, *view) for image, view in zip(x, every, strict=True)])
    assert torch.equal(found, expected) and is_channels_last(found)


def test_augment_draws_every_shift_and_mirrors_half():
    n = 4_000
    ramp = torch.arange(32.0).view(1, 1, 1, 32).expand(n, 3, 32, 32) + 100 * torch.arange(32.0).view(1, 1, 32, 1)
    found = augment(ramp, torch.Generator().manual_seed(0))
    centre = found[:, 0, 16, 16]
    rows, columns = centre.div(100, rounding_mode="floor"), centre % 100
    mirrored = found[:, 0, 16, 17] < centre
    assert sorted(set((16 - rows).tolist())) == list(range(-4, 5))
    assert sorted(set((columns[~mirrored] - 16).tolist())) == list(range(-4, 5))
    assert sorted(set((columns[mirrored] - 15).tolist())) == list(range(-4, 5))
    assert 0.46 < mirrored.float().mean() < 0.54
    assert torch.histc(rows, 9).min() > n / 9 * 0.8


def test_augment_stays_in_range_and_leaves_its_argument_alone():
    x = small().x_train[:256]
    before = x.clone()
    found = augment(x, torch.Generator().manual_seed(0))
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1 and is_channels_last(found)
    assert torch.equal(x, before) and not torch.equal(found, x)


def test_augment_repeats_with_its_generator():
    x = small().x_train[:64]
    one, same, other = (augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_augment_takes_any_memory_layout():
    x = small().x_train[:32]
    plain = x.contiguous(memory_format=torch.contiguous_format)
    one, other = (augment(images, torch.Generator().manual_seed(1)) for images in (x, plain))
    assert torch.equal(one, other) and is_channels_last(other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_images():
    cfg = CifarConfig(train=1_000, test=10)
    here, there = load(cfg), load(cfg, "cuda")
    assert torch.equal(here.x_train, there.x_train.cpu())
    one, other = (augment(d.x_train, torch.Generator().manual_seed(1)) for d in (here, there))
    assert torch.equal(one, other.cpu()) and other.is_cuda


# Batches


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_shows_each_image_once(augmented, drop_last):
    numbered = small()
    numbered = Data(numbered.x_train, torch.arange(2_000), numbered.x_test, numbered.y_test)  # labels name the images
    found = list(batches(numbered, 300, torch.Generator().manual_seed(0), augmented, drop_last))
    assert [len(y) for _, y in found] == [300] * 6 + ([] if drop_last else [200])
    names = torch.cat([y for _, y in found])
    assert len(names.unique()) == len(names) and not torch.equal(names, names.sort().values)
    assert all(is_channels_last(x) for x, _ in found)
    same = [torch.equal(x, numbered.x_train[y]) for x, y in found]
    assert not any(same) if augmented else all(same)


def test_augmented_batches_show_the_image_that_the_label_names():
    """A flat image keeps its colour however it is moved, so that image and label can be matched."""
    colours = torch.arange(100.0).view(100, 1, 1, 1).expand(100, 3, 32, 32)
    flat = Data(colours, torch.arange(100), colours, torch.arange(100))
    for x, y in batches(flat, 10, torch.Generator().manual_seed(3)):
        assert torch.equal(x, y.float().view(-1, 1, 1, 1).expand_as(x))


def test_epochs_differ_and_repeat_with_the_generator():
    def labels(generator: torch.Generator) -> Tensor:
        return torch.cat([y for _, y in batches(small(), 500, generator)])

    generator = torch.Generator().manual_seed(5)
    first, second = labels(generator), labels(generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, labels(torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("batch", [0, -1, 2_001])
def test_a_batch_that_cannot_be_filled_is_refused(batch):
    with pytest.raises(Refused, match="batch="):
        batches(small(), batch, torch.Generator())
