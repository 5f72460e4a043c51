"""Read weights without running what a file says: safetensors, or torch.load with weights_only=True."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cnnstudy.config import Refused, choose

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor, on the CPU, from a .safetensors file or a torch state dict (.pth, .pt, .bin).

    Raises Refused, in one line, for a missing or damaged file, another suffix, a pickle that asks for anything but
    tensors, or a file that is not a flat dictionary of tensors.
    """
    path = Path(path)
    choose("kind of weights file", path.suffix, SUFFIXES)
    if not path.is_file():
        raise Refused(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # on the pickle's protocol, when the refusal says it all
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(f"{path} is a pickle with more than tensors in it, and is not read; save it as safetensors") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"{path} is damaged or not a weights file: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise Refused(f"{path} does not hold a flat dictionary of tensors")
    return state
