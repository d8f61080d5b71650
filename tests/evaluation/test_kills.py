"""A run killed with SIGKILL in the middle of its answers goes on and ends with the same files, byte for byte.

ace-world's own is in `test_world.py`, the user study's in `test_study.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ImageChops

from ace.evaluation.benchmarks.ice_metrics import IceNetworks
from ace.evaluation.editing import Scorers, evaluate_emu_edit, evaluate_magicbrush
from ace.evaluation.ice import IceScorers, evaluate_ice_bench
from ace.evaluation.systems import Contestant

from .random_encoders import picture, write_magicbrush
from .test_emu_edit import write_set

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.evaluation import test_kills

root, answers = Path(sys.argv[1]), int(sys.argv[2])
asked = 0

def edit(units, seeds):
    global asked
    asked += len(units)
    if asked > answers:
        os.kill(os.getpid(), signal.SIGKILL)
    return test_kills.invert(units, seeds)

for name, (_, run) in test_kills.BENCHMARKS.items():  # a process for each, forked: importing torch is what takes long
    if not (process := os.fork()):
        run(root / name / "data", edit, root / name / "killed")
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (name, status)
"""


def invert(units, seeds):
    return [ImageChops.invert(unit.current.images[0]) for unit in units]


def write_ice(folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for number in range(4):
        picture(number, (64, 64)).save(folder / f"{number}.png")
        row = {"ItemID": str(number), "Task": "Color Editing", "SourceImage": f"{number}.png", "SourceMask": ""}
        lines.append({**row, "ReferenceImages": [], "Instruction": f"make it {number}", "TargetCaption": "a cat"})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def magicbrush(data, edit, output):
    evaluate_magicbrush(data, Contestant("x", edit, {}), output, Scorers(None, None), batch=1, quiet=True)


def emu_edit(data, edit, output):
    evaluate_emu_edit(str(data), "test", Contestant("x", edit, {}), output, Scorers(None, None), batch=1, quiet=True)


def ice_bench(data, edit, output):
    evaluate_ice_bench(data / "data.jsonl", Contestant("x", edit, {}), output, IceScorers(IceNetworks()), quiet=True)


BENCHMARKS = {
    "magicbrush": (write_magicbrush, magicbrush),
    "emu_edit": (write_set, emu_edit),
    "ice_bench": (write_ice, ice_bench),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder for each benchmark, with its set and a run that was killed after two answers."""
    root = tmp_path_factory.mktemp("killed")
    for name, (write, _) in BENCHMARKS.items():
        (root / name).mkdir()
        write(root / name / "data")
    subprocess.run(
        [sys.executable, "-c", KILLED, str(root), "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=True,
    )
    return root


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(benchmark, killed):
    folder, run = killed / benchmark, BENCHMARKS[benchmark][1]
    assert len(list(folder.glob("killed/answers/**/*.png"))) == 2 and not (folder / "killed" / "table.md").exists()
    asked = []

    def edit(units, seeds):
        asked.extend(units)
        return invert(units, seeds)

    run(folder / "data", edit, folder / "killed")
    resumed = len(asked)
    run(folder / "data", edit, folder / "whole")
    assert resumed == len(asked) - resumed - 2  # what was answered before the kill is not asked again
    assert files_in(folder / "killed") == files_in(folder / "whole")


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
