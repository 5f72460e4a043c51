"""timm, imported so that it works beside a torch build that torchvision's wheel does not fit.

``pip install torch torchvision`` on a CPU-only mirror can pair a CPU torch with a CUDA torchvision.  Then
torchvision's C++ library does not load and the import ends in ``operator torchvision::nms does not exist``.  The
models need no such operator: declare the missing schemas, without kernels, and import again.  On a matching pair
nothing is done.  Everything in cnnstudy that needs timm calls :func:`import_timm`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[torch.library.Library] = []  # torch forgets the schemas when their Library is collected


def import_torchvision() -> ModuleType:
    """``import torchvision``, with the two missing operators declared if that is why it fails."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported: a second import would hand it out as it is
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _kept.append(library)
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """The package timm; torchvision, which it imports, is mended first where needed."""
    import_torchvision()
    return importlib.import_module("timm")
