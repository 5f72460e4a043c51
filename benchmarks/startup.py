"""Time to start a page: fifty notebooks that do nothing but import torch, pandas and matplotlib, papermill against ours.

    python benchmarks/startup.py [--notebooks 50] [--runs 1] [--jobs N]

As ``benchmarks/drawing.py``, which see.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from drawing import compare

from cnnstudy.runtime import cores

CELLS = (
    "import matplotlib.pyplot as plt\nimport pandas as pd\nimport torch",
    "torch.ones(2).sum().item(), len(pd.DataFrame()), plt.get_backend()",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebooks", type=int, default=50)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=cores())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = [Path(folder) / f"trivial_{i:03}.ipynb" for i in range(args.notebooks)]
        for source in sources:
            cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
            kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
            nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), source)
        compare("starting a page", sources, args.runs, args.jobs)


if __name__ == "__main__":
    main()
