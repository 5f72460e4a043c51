"""Make data/cifar10-mini from the complete CIFAR-10: `python tools/make_cifar_mini.py [FOLDER]`.

The sample holds the first 1,000 training and 400 test images of each class, in the authors' order; the classes take
turns, image i has class i % 10, so that the first n images are the first n / 10 of each class. They are laid out in
tiles of 2,000 (40 rows of 50) and written as lossless WebP; MANIFEST.json pins the sha256 of the decoded pixels of each
tile, images in order, uint8 (2000, 32, 32, 3). Needs the complete set (`cnnstudy data fetch cifar10`) and half a minute.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cnnstudy.archives import digest
from cnnstudy.data import interleaved
from cnnstudy.fetch import read_cifar10

PER_CLASS = {"train": 1000, "test": 400}
ROWS, COLUMNS = 40, 50
TILE = ROWS * COLUMNS


def main(folder: Path) -> None:
    arrays = read_cifar10()
    manifest: dict[str, object] = {"tile": {"rows": ROWS, "columns": COLUMNS, "images": TILE}}
    for split, per_class in PER_CLASS.items():
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        order = interleaved(labels, per_class)
        tiles = []
        for start in range(0, len(order), TILE):
            pixels = np.ascontiguousarray(images[order[start : start + TILE]])
            picture = pixels.reshape(ROWS, COLUMNS, 32, 32, 3).swapaxes(1, 2).reshape(ROWS * 32, COLUMNS * 32, 3)
            name = f"{split}-{start // TILE}.webp"
            Image.fromarray(picture).save(folder / name, "WEBP", lossless=True, quality=100, method=5)
            tiles.append({"file": name, "sha256_pixels": digest(pixels)})
            print(name, (folder / name).stat().st_size)
        table = "label,original_index\n" + "".join(f"{labels[i]},{i}\n" for i in order)
        (folder / f"{split}.csv").write_text(table)
        manifest[split] = {
            "images": len(order),
            "tiles": tiles,
            "labels": {"file": f"{split}.csv", "sha256": hashlib.sha256(table.encode()).hexdigest()},
        }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "cifar10-mini")
