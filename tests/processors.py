"""Tests as another processor would run them: parity, determinism and replay under other instruction sets and threads.

Every level is a setting of the environment that the libraries under torch read when they start. A library ignores in
silence what the processor lacks (MKL also what AMD's processors are not meant to do), so that each level first proves
by a probe that it changes something: the bits of some matrix products and vector functions, or the thread count. One
that changes nothing counts as "no effect here" and runs no tests.

It also says how far pictures move from level to level: some are made without one and replayed under each.

    python tests/processors.py [--quick | --replay-only] [pytest arguments]

--quick: the cheapest three that take effect, no replay, for continuous integration. --replay-only: no tests. Exit code
1 if a test fails under any level, or a replayed picture moves by more than 4 of 255 levels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# name -> environment; the cheapest that change something on most machines come first
LEVELS: dict[str, dict[str, str]] = {
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "torch default": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "4 threads": {"OMP_NUM_THREADS": "4"},
    "MKL AVX2": {"MKL_CBWR": "AVX2"},
    "MKL AVX-512": {"MKL_CBWR": "AVX512"},
    "MKL instructions SSE4.2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "MKL instructions AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "torch AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "oneDNN AVX-512 bfloat16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "all of them least, 2 threads": {
        "MKL_CBWR": "COMPATIBLE",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OMP_NUM_THREADS": "2",
    },
}
VARIABLES = sorted({name for level in LEVELS.values() for name in level})
QUICK = 3
MOST_AT_ONCE = 4  # levels, one per core
MOST_LEVELS = 4  # that a picture of the small model may move, of 255
QUICK_TESTS = ("tests/parity/test_diffusion.py", "tests/parity/test_e2e.py", "tests/diffusion/test_ddim.py")
TESTS = (
    *("tests/parity", "tests/diffusion", "tests/test_same_bytes.py", "tests/inference/test_pipeline.py"),
    *("tests/plus/test_pipeline.py", "tests/conversation", "tests/model"),
)


def probe() -> str:
    """A hash of what the processor makes of products and vector functions in both precisions, and the threads."""
    import torch

    digest = hashlib.sha256(str(torch.get_num_threads()).encode())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.rand(96, 640, generator=generator).to(dtype)
            weight = torch.rand(512, 640, generator=generator).to(dtype)
            image = torch.rand(1, 16, 24, 24, generator=generator).to(dtype)
            kernel = torch.rand(16, 16, 3, 3, generator=generator).to(dtype)
            results = [
                x @ weight.T,
                torch.nn.functional.conv2d(image, kernel),
                *(function(x) for function in (torch.sqrt, torch.exp, torch.sin, torch.nn.functional.gelu)),
                x.softmax(dim=-1),
                x.sum(dim=-1),
            ]
            if dtype == torch.float32 and torch.backends.mkldnn.is_available():
                results.append(torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
            for result in results:
                digest.update(result.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def environment(level: dict[str, str]) -> dict[str, str]:
    """This process's environment under a level, without what another one would set; one thread unless it says more."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", **level}


def probed(level: dict[str, str]) -> str:
    """What `probe` finds in a process under a level."""
    command = [sys.executable, __file__, "--probe"]
    return subprocess.run(command, env=environment(level), capture_output=True, text=True, check=True).stdout.split()[
        -1
    ]


def ace(level: dict[str, str], *arguments: str) -> str:
    """What an `ace` command prints in a process under a level."""
    command = [sys.executable, "-m", "ace", *arguments]
    return subprocess.run(command, env=environment(level), capture_output=True, text=True).stdout


def talk(folder: Path) -> Path:
    """A session of the small model, made as it is: a picture and two edits of it, one with a history."""
    session = folder / "talk"
    for verb, words in (("generate", "a red circle"), ("edit", "make it blue"), ("edit", "make the background white")):
        ace({}, verb, words, "--session", str(session), "--seed", "1", "--steps", "8", "--device", "cpu", "--quiet")
    return session


def moved(session: Path, level: dict[str, str]) -> tuple[str, int]:
    """How the session's pictures, made again under a level, differ from what they were: in words, and in levels."""
    rows = json.loads(ace(level, "replay", str(session), "--device", "cpu", "--json"))
    most = max(row["largest_difference"] for row in rows)
    same = sum(row["same_bytes"] for row in rows)
    return f"replayed {same} of {len(rows)} to the byte, the others within {most} of 255 levels", most


def main(arguments: list[str]) -> int:
    """Run the tests under every level that takes effect; 1 if any failed."""
    quick, replay_only = "--quick" in arguments, "--replay-only" in arguments
    tests = [*(QUICK_TESTS if quick else TESTS), *(a for a in arguments if a not in ("--quick", "--replay-only"))]
    with tempfile.TemporaryDirectory() as folder:
        return run_levels(
            None if replay_only else tests, None if quick else talk(Path(folder)), QUICK if quick else None
        )


def run_levels(tests: list[str] | None, session: Path | None, most: int | None) -> int:
    """`main` with what is to be run (None: no tests), replayed (None: nothing), and at how many levels (None: all)."""
    levels = dict(itertools.islice(LEVELS.items(), None if most is None else 2 * most))
    seen, chosen = {probed({}): "as it is"}, {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_AT_ONCE)) as pool:
        for (name, level), found in zip(levels.items(), pool.map(probed, levels.values()), strict=True):
            if found in seen:
                print(f"{name:<30} {words_of(level)}: no effect here (as {seen[found]!r})", flush=True)
            elif most is None or len(chosen) < most:
                seen[found], chosen[name] = name, level
        failed = []
        results = pool.map(lambda level: run_level(level, tests, session), chosen.values())
        for (name, level), (said, bad) in zip(chosen.items(), results, strict=True):
            print(f"{name:<30} {words_of(level)}: {said}", flush=True)
            if bad:
                failed.append(name)
                print("\n".join(line for line in bad.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))))
    print(f"{len(chosen)} levels took effect, {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed or not chosen else 0


def words_of(level: dict[str, str]) -> str:
    """A level as one would type it."""
    return " ".join(f"{name}={value}" for name, value in level.items())


def run_level(level: dict[str, str], tests: list[str] | None, session: Path | None) -> tuple[str, str]:
    """The tests and the replay under one level: what came out, and what pytest printed if something failed."""
    began, said, bad = time.monotonic(), [], ""
    if tests is not None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        result = subprocess.run(command, env=environment(level), capture_output=True, text=True)
        said.append(result.stdout.strip().splitlines()[-1])
        bad = result.stdout if result.returncode else ""
    if session is not None:
        words, levels = moved(session, level)
        said.append(words)
        bad += "FAILED replay\n" if levels > MOST_LEVELS else ""
    return f"{'; '.join(said)} ({time.monotonic() - began:.0f} s)", bad


if __name__ == "__main__":
    if "--probe" in sys.argv:
        print(probe())
    else:
        sys.exit(main(sys.argv[1:]))
