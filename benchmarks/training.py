"""Images a second while ResNet-20 trains: ``train.fit`` against a plain loop over a DataLoader with transforms for each image.

    python benchmarks/training.py [--images 2000] [--runs 3]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from results import in_turns, keep
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cnnstudy.data import CifarConfig, Data, load
from cnnstudy.models import ResNetConfig, build
from cnnstudy.models.torchvision_mend import import_torchvision
from cnnstudy.runtime import device
from cnnstudy.train import Recipe, fit


class Images(Dataset):  # type: ignore[type-arg]
    """One image at a time, shifted and flipped as tutorials do it."""

    def __init__(self, data: Data) -> None:
        transforms = import_torchvision().transforms
        self.data = data
        self.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.data.x_train)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.data.x_train[index]), self.data.y_train[index]


def plain(model: nn.Module, data: Data) -> None:
    """One epoch as in a tutorial."""
    where = data.x_train.device
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for x, y in DataLoader(Images(data), 128, shuffle=True, drop_last=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x.to(where)), y.to(where)).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    where, data = device(), load(CifarConfig(train=args.images, test=1000), device())
    fresh = {name: build(ResNetConfig(depth=20)).to(where) for name in ("plain", "fp32", "bf16")}
    cases = {
        "plain": lambda: plain(fresh["plain"].train(), data),
        "fp32": lambda: fit(fresh["fp32"], data, Recipe(epochs=1)),
        "bf16": lambda: fit(fresh["bf16"], data, Recipe(epochs=1, precision="bf16")),
    }
    seconds = in_turns(cases, args.runs)
    rates = {name: round(len(data.x_train) / s) for name, s in seconds.items()}
    ratios = {f"{name} against a DataLoader loop": seconds["plain"] / seconds[name] for name in ("fp32", "bf16")}
    keep("training", ratios, images_per_second=rates, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
