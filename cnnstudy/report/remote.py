"""Many machines: pages measured by Dask workers, their records brought back to the caller.

    cnnstudy run --scheduler tcp://head:8786          a scheduler that is there, with its workers
    cnnstudy run --scheduler slurm --jobs 8           workers started through SLURM, as Dask's own jobqueue.yaml says

A worker is any process that can import this package from a working copy of the same state.  It measures a whole page, so that
what is compared is measured on one machine, into its own working copy, and hands back the records that the caller lacks: no
shared file system is needed.  When a worker dies, Dask gives its page to another one.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cnnstudy import __version__
from cnnstudy.config import Refused, digest
from cnnstudy.report import bundle, claims, evidence, execute, graph, history, vouch
from cnnstudy.report import plan as plans
from cnnstudy.report.cells import questions
from cnnstudy.report.children import PageFailed
from cnnstudy.report.live import Board
from cnnstudy.runtime import ROOT, commit, cores, machine_id

if TYPE_CHECKING:
    from distributed import Client

TOPIC = "cnnstudy"
WAIT_S = 15  # for a scheduler to answer


@dataclass(frozen=True)
class Result:
    """What a worker hands back: whose records, how many, a bundle of them (empty if there are none), and why the page failed, if it did."""

    machine: str
    came: int
    records: bytes
    error: str | None = None


@functools.cache
def version() -> tuple[str, str]:
    """This working copy in words, and the digest of all that decides what is measured: package, notebooks, ledgers, plans."""
    folders = (("cnnstudy", "*.py"), ("notebooks", "q*.ipynb"), ("data/claims", "*.yaml"), ("data/plans", "*.json"))
    files = [p for folder, names in folders for p in sorted((ROOT / folder).rglob(names)) if p.suffix != ".ipynb"]
    state = digest([graph.files_digest(files), [graph.cells_digest(q) for q in questions()]])
    sha, dirty = commit()
    return f"cnnstudy {__version__}, commit {sha or 'unknown'}{' with changes' if dirty else ''}, code {state}", state


def _agree(where: str, theirs: tuple[str, str], ours: tuple[str, str]) -> None:
    if theirs[1] != ours[1]:
        raise Refused(f"worker {where} has {theirs[0]}; here is {ours[0]}: bring both to the same state")


@dataclass(frozen=True)
class Known:
    """What the caller has of a page and a machine: when the record of each key was begun, and which of them are to be measured anew."""

    begun: Mapping[str, str] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()


def _begun(question: str, machine: str) -> dict[str, str]:
    """When the records of a page on a machine were begun, by key: those that its plan names, and what else its experiments made."""
    own = claims.load(question).experiments
    planned = {e["key"] for one in plans.load(question).values() for profile in plans.PROFILES for e in one.entries(profile)}
    of_page = (r for r in evidence.read(machine) if r["key"] in planned or (r["question"] == question and r["experiment"] in own))
    return {r["key"]: history.begun(r) for r in of_page}


# on the worker ------------------------------------------------------------------------------------------------------------


def measure_page(question: str, order: execute.Order, caller: tuple[str, str], known: Mapping[str, Known], limit: int) -> Result:
    """Measure what the caller lacks of a page of this machine's records, and with ``stale`` what is out of date at the caller's.

    What overrides lead to stands in no plan: with them, all that this working copy lacks is measured.  Every record of the page that the
    caller lacks, or has an older one of, goes back.  Runs on a worker; raises Refused for other code there.
    """
    _agree(machine_id(), version(), caller)
    mine = known.get(machine_id(), Known())
    if not order.overrides:
        planned = {entry["key"] for one in plans.load(question).values() for entry in one.entries(order.profile)}
        wanted = frozenset(planned - (mine.begun.keys() - mine.stale))
        order = replace(order, keys=wanted if order.keys is None else wanted & order.keys)
    board, error = _Reporter(), None
    board.add(question, 0, None)
    try:
        for stage in execute.STAGES:
            execute.measure(question, stage, order, board, max(1, cores() // limit))
    except PageFailed as failure:
        error = str(failure)
    news = {key for key, begun in _begun(question, machine_id()).items() if begun > mine.begun.get(key, "")}
    return Result(machine_id(), len(news), bundle.pack_bytes(machine_id(), keys=news) if news else b"", error)


class _Reporter(Board):
    """A board on a worker: what happens there is told to the caller's board."""

    def event(self, page: str, event: Mapping[str, Any]) -> None:
        from distributed import get_worker

        get_worker().log_event(TOPIC, {"page": page, "machine": machine_id(), **event})

    def say(self, line: str) -> None:
        pass


# at the caller ------------------------------------------------------------------------------------------------------------


class Cluster:
    """The workers of a scheduler."""

    def __init__(self, client: Client, board: Board) -> None:
        self.client, self.board = client, board
        self.limit = max([1, *(w["nthreads"] for w in client.scheduler_info(n_workers=-1)["workers"].values())])
        self._check()
        client.subscribe_topic(TOPIC, self._heard)

    def _check(self) -> None:
        """Refuse workers that would measure with other code; one that joins later checks itself."""
        try:
            states = self.client.run(version)
        except ModuleNotFoundError as error:
            raise Refused(f"a worker has no {error.name}: install the package in its environment") from None
        for where, theirs in states.items():
            _agree(where, theirs, version())

    def _heard(self, message: tuple[Any, Mapping[str, Any]]) -> None:
        _, event = message
        self.board.event(event["page"], event)

    def measure(self, question: str, order: execute.Order) -> tuple[str, int]:
        """Have a page measured, and merge its records: the machine that did it, and how many came.  Raises PageFailed."""
        self.board.enter(question, "measuring")
        known = {machine: self._known(question, order, machine) for machine in evidence.machines()}
        future = self.client.submit(measure_page, question, order, version(), known, self.limit, pure=False, key=f"{question}-{id(order)}")
        result: Result = _patiently(future)
        if result.records:
            bundle.merge(result.records)
        if result.error:
            raise PageFailed(f"on {result.machine}: {result.error}")
        return result.machine, result.came

    def _known(self, question: str, order: execute.Order, machine: str) -> Known:
        old = vouch.stale(question, order.profile, machine) if order.stale else []
        return Known(_begun(question, machine), frozenset(entry["key"] for _, entry in old))


def _patiently(future: Any) -> Result:
    """The result of a future; looks twice a second whether the user wants to stop."""
    from distributed import TimeoutError as NotYet
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    from cnnstudy.report.children import Stopped, stopping

    while True:
        try:
            return future.result(timeout=0.5)
        except NotYet:
            if stopping.is_set():
                future.cancel(force=True)
                raise Stopped("stopped; a worker may still finish the page in its own working copy") from None
        except (KilledWorker, FutureCancelledError) as error:
            raise PageFailed(f"no worker survived it: {str(error).splitlines()[0]}") from None


@contextmanager
def cluster(scheduler: str, workers: int, board: Board) -> Iterator[Cluster]:
    """Workers behind ``scheduler``: an address, or "slurm" for ``workers`` jobs.  Refused when nobody answers or no worker comes."""
    from distributed import Client

    with ExitStack() as stack:
        try:
            address = stack.enter_context(_slurm(workers)) if scheduler == "slurm" else scheduler
            client = stack.enter_context(Client(address, timeout=WAIT_S, set_as_default=False))
        except (OSError, ValueError) as error:  # a timeout is an OSError
            raise Refused(f"no scheduler at {scheduler!r}: {str(error).splitlines()[0]}; valid: tcp://HOST:PORT, slurm") from None
        try:
            if scheduler == "slurm":
                board.say(f"waiting for SLURM to start one of {workers} workers (Ctrl-C to give up)")
            client.wait_for_workers(1, timeout=None if scheduler == "slurm" else WAIT_S)
        except TimeoutError:
            raise Refused(f"the scheduler at {scheduler} has no workers; start one: dask worker {scheduler}") from None
        yield Cluster(client, board)


def _slurm(workers: int) -> Any:
    """Jobs that are workers, described in Dask's configuration (``jobqueue: slurm: {cores: 4, memory: 16GB, ...}``)."""
    from dask_jobqueue import SLURMCluster

    if not shutil.which("sbatch"):
        raise Refused("--scheduler slurm: there is no sbatch here; run it on a login node of the cluster")
    queue = SLURMCluster()
    queue.scale(jobs=workers)
    return queue
