"""A papermill engine that runs the cells of a notebook in this process, by the code that a kernel runs them with.

A kernel is ipykernel's shell with sockets around it, and a client that turns its messages into outputs.  Here the shell's
messages go to the client at once: no second interpreter, no sockets, nothing to collide with or to wait for.  What comes out is
what a kernel gives, to the byte (``tests/report/test_shell.py`` compares them), but for what a library or a program writes to the
process's own output past ``sys.stdout``.  For use in a process of its own: the shell takes over ``__main__`` and the like.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from ipykernel.compiler import XCachingCompiler
from ipykernel.zmqshell import ZMQInteractiveShell
from jupyter_client.session import Session
from nbclient.exceptions import CellExecutionError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager
from papermill.log import logger
from traitlets.config import Config

Message = dict[str, Any]


class _Messages(Session):  # type: ignore[misc]
    """Where a kernel has a socket: messages are handed on as the other side would get them, after a way through JSON."""

    def __init__(self, hear: Callable[[Message], None]) -> None:
        super().__init__()
        self._hear = hear

    def send(self, stream: Any, msg_or_type: Any, content: Any = None, *_: Any, **__: Any) -> None:
        message = msg_or_type if isinstance(msg_or_type, dict) else self.msg(msg_or_type, content)
        self._hear({**message, "content": self.unpack(self.pack(message["content"]))})


class _Stream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of the cells: text is kept until something is displayed or the cell ends, as in a kernel."""

    encoding = "UTF-8"

    def __init__(self, name: str, messages: _Messages) -> None:
        self._name, self._messages, self._text = name, messages, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._text += text
        return len(text)

    def flush(self) -> None:
        text, self._text = self._text, ""
        if text:
            self._messages.send(None, "stream", {"name": self._name, "text": text})


class _Client(PapermillNotebookClient):  # type: ignore[misc]
    """papermill's client, whose kernel is a shell in this process."""

    def execute(self, **_: Any) -> Any:
        self.reset_execution_trackers()
        self._now: tuple[Any, int] | None = None
        self._error: Message | None = None
        self._messages = _Messages(self._hear)
        self._streams = _Stream("stdout", self._messages), _Stream("stderr", self._messages)
        with tempfile.TemporaryDirectory() as profile:  # nobody's own startup files, and no history
            config = Config({"HistoryManager": {"enabled": False}})
            self._shell = ZMQInteractiveShell.instance(config=config, ipython_dir=profile, compiler_class=XCachingCompiler)
            ends: list[Any] = [self._shell.displayhook, self._shell.display_pub]
            for end in ends:
                end.session = self._messages
            with redirect_stdout(self._streams[0]), redirect_stderr(self._streams[1]):
                self.papermill_execute_cells()
        return self.nb

    def execute_cell(self, cell: Any, cell_index: int, *_: Any, **__: Any) -> Any:
        if cell.cell_type != "code" or not cell.source.strip():
            return cell
        cell.outputs = []
        self._now, self._error, self.clear_before_next_output = (cell, cell_index), None, False
        self._messages.send(None, "execute_input", {"execution_count": self._shell.execution_count})
        self._shell.run_cell(cell.source, store_history=True, cell_id=cell.get("id"))
        for stream in self._streams:
            stream.flush()
        if self._error is not None and "raises-exception" not in cell.metadata.get("tags", []):
            raise CellExecutionError.from_cell_and_msg(cell, self._error)
        return cell

    def _hear(self, message: Message) -> None:
        if message["msg_type"] == "error":
            self._error = message["content"]
        if self._now is not None:
            self.process_message(message, *self._now)


class ShellEngine(Engine):  # type: ignore[misc]
    """``papermill.execute_notebook(..., engine_name="shell")``."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **_: Any) -> None:
        _Client(nb_man, log=logger, record_timing=False).execute()
