"""Many machines: a real scheduler, workers with working copies of their own, one of which is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project


class Site:
    """A scheduler and its workers on this machine."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project, self.folder, self.workers = project, folder, []
        file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        end = time.monotonic() + 60
        while not (file.exists() and file.read_text().endswith("}")):
            assert time.monotonic() < end
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]

    def _start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
        with open(self.folder / f"{arguments[0]}-{time.monotonic_ns()}.log", "wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=env or self.project.env)

    def worker(self, name: str) -> Path:
        """Start a worker in a working copy of its own; returns the copy."""
        copy = self.folder / name
        shutil.copytree(self.project.root, copy)
        env = self.project.env | {"CNNSTUDY_ROOT": str(copy), "CNNSTUDY_LOCKS": str(copy / "locks")}
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name, "--local-directory", str(self.folder)]
        self.workers.append(self._start("worker", self.address, *options, env=env))
        return copy

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.fixture
def site(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    project.second_page()
    made = Site(project, tmp_path_factory.mktemp("site"))
    yield made
    made.close()


def lines(root: Path, question: str) -> list[dict]:
    path = root / f"data/records/toy-machine/{question}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_all_pages_done_though_a_worker_is_killed_nothing_lost_or_doubled(site: Site) -> None:
    copies = [site.worker("one"), site.worker("two")]
    project = site.project
    command = project.command("run", "--profile", "quick", "--no-site", "--scheduler", site.address, "--set", "pause=0.4")
    run = subprocess.Popen(command, env=project.env, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 120
    while not any(2 <= len(lines(copies[0], q)) < 9 for q in ("q98", "q99")):
        assert time.monotonic() < end and run.poll() is None, run.stdout and run.stdout.read()
        time.sleep(0.05)
    site.workers[0].kill()
    out, _ = run.communicate(timeout=200)
    assert run.returncode == 0, out
    for question in ("q98", "q99"):
        keys = [r["key"] for r in lines(project.root, question)]
        assert len(keys) == 9 == len(set(keys)), out
        assert (project.root / f"_build/executed/{question}_toy.ipynb").exists()
    assert 0 < sum(len(lines(copies[0], q)) for q in ("q98", "q99")) < 18  # the dead one's work stays in its copy
    again = project.ok("run", "--profile", "quick", "--no-site", "--scheduler", site.address)
    assert [len(lines(project.root, q)) for q in ("q98", "q99")] == [9, 9], again


@pytest.mark.slow
def test_what_overrides_lead_to_is_measured_and_comes_back_and_so_does_all_that_is_lost_here(site: Site) -> None:
    site.worker("one")
    project = site.project
    project.ok("run", "q99", "--profile", "quick", "--measure-only", "--scheduler", site.address, "--set", "numbers=[2, 7]")
    made = lines(project.root, "q99")
    assert len(made) == 2 + 4 and {r["setup"]["n"] for r in made} == {2, 7}  # no plan names 7
    project.records.unlink()
    project.ok("run", "q99", "--profile", "quick", "--measure-only", "--scheduler", site.address)
    found = lines(project.root, "q99")
    assert len(found) == 6 + 6 and all(r in found for r in made)


@pytest.mark.slow
@pytest.mark.parametrize("clone", [False, True], ids=["records there", "fresh clone"])
def test_what_is_stale_is_measured_anew(site: Site, clone: bool) -> None:
    project = site.project
    project.ok("run", "q99", "--profile", "quick", "--measure-only")
    notebook = project.root / "notebooks/q99_toy.ipynb"
    notebook.write_text(notebook.read_text().replace("setup.n**2", "setup.n * setup.n"))
    project.ok("plan", "q99", "--write")
    copy = site.worker("one")
    if clone:
        shutil.rmtree(copy / "data/records/toy-machine")
    command = ("run", "q99", "--profile", "quick", "--measure-only", "--stale", "--scheduler", site.address)
    for _ in range(2):  # the second time nothing is stale
        project.ok(*command)
        made = lines(project.root, "q99")
        assert [r["experiment"] for r in made[9:]] == ["squares"] * 3
    (row,) = [r for r in json.loads(project.ok("status", "q99", "--json")) if r["profile"] == "quick"]
    assert (row["stale"], row["recorded"]) == (0, 9)


@pytest.mark.slow
def test_a_worker_with_other_code_is_refused_and_both_versions_named(site: Site) -> None:
    ledger = site.worker("one") / "data/claims/q99.yaml"
    ledger.write_text(ledger.read_text().replace("margin: 100", "margin: 101"))
    done = site.project.run("run", "--profile", "quick", "--scheduler", site.address)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.count("cnnstudy 0.") == 2 and done.stderr.count("code ") >= 2 and "bring both to the same state" in done.stderr
    assert lines(site.project.root, "q99") == []


def test_an_unreachable_scheduler_is_refused(project: Project) -> None:
    done = project.run("run", "--profile", "quick", "--scheduler", "tcp://127.0.0.1:9")
    assert done.returncode == 2 and "no scheduler at 'tcp://127.0.0.1:9'" in done.stderr and "slurm" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_slurm_without_slurm_or_without_its_description_is_refused(project: Project, tmp_path: Path) -> None:
    project.env["PATH"] = str(tmp_path)
    done = project.run("run", "--profile", "quick", "--scheduler", "slurm")
    assert done.returncode == 2 and "no sbatch here" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    (tmp_path / "sbatch").touch(mode=0o755)
    done = project.run("run", "--profile", "quick", "--scheduler", "slurm")
    assert done.returncode == 2 and "cores" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_scheduler_without_workers_is_refused(site: Site) -> None:
    done = site.project.run("run", "--profile", "quick", "--scheduler", site.address)
    assert done.returncode == 2 and f"dask worker {site.address}" in done.stderr
