"""What a reader sees while something is measured.

Under the runner, events go to the file that CNNSTUDY_PROGRESS names (one JSON line each) and the runner shows them;
otherwise a progress bar on standard error does.
"""

from __future__ import annotations

import json
import os
import time
from types import TracebackType
from typing import Any


class Progress:
    """Progress over the measurements of one experiment, with an estimate from those already made."""

    def __init__(self, question: str, experiment: str, total: int, found: int) -> None:
        self.name = f"{question} {experiment}"
        self.total, self.found = total, found
        self._file = os.environ.get("CNNSTUDY_PROGRESS")
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._file:
            self._event("experiment", total=self.total, found=self.found)
        elif self.total > self.found:
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=self.found, desc=self.name, unit="trial", dynamic_ncols=True)
        return self

    def begin(self, label: str) -> None:
        """A measurement starts."""
        if self._file:
            self._event("begin", label=label)
        elif self._bar is not None:
            self._bar.set_postfix_str(label)

    def advance(self, seconds: float, failed: str | None) -> None:
        """A measurement is recorded."""
        if self._file:
            self._event("record", seconds=seconds, failed=failed)
        elif self._bar is not None:
            self._bar.update()
            if failed:
                self._bar.write(f"{self.name}: failed: {failed}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def _event(self, event: str, **more: Any) -> None:
        assert self._file
        line = json.dumps({"event": event, "name": self.name, "time": time.time(), **more}) + "\n"
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(line)
