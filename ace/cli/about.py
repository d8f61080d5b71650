"""`ace models`, `ace doctor`, `ace demo`: what is here, and what it can do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import Device, Json, Model, Quiet, Seed, Steps, check_numbers
from ace.cli.terminal import Output, count_of, load, short
from ace.extras import install_command

if TYPE_CHECKING:
    from ace.weights.sources import ModelFiles

# extra -> the packages that it brings, as they are imported
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("accelerate", "peft"),
    "data": ("fontTools", "resvg_py"),
    "server": ("fastapi", "uvicorn"),
    "web": ("fastapi", "uvicorn"),
    "quant": ("torchao", "bitsandbytes", "gguf"),
}


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Say what this one has learnt to draw from words.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List the models that have a name, and say which are on this machine.

    \b
    ace models
    ace models ace-tiny
    """
    from ace.plus.models import BASE_VARIABLE, PLUS_MODELS
    from ace.weights.sources import DEFAULT_MODEL, find_model, known_models

    output = Output(json)
    if name is not None:
        _learnt(find_model(name), output)
        return
    known = known_models()
    default = os.environ.get("ACE_MODEL") or DEFAULT_MODEL
    rows = [
        {
            "name": m.name,
            "here": m.is_present,
            "default": m.name == default,
            "description": m.description,
            "folder": str(m.folder),
        }
        for m in known
    ]
    plus = [{"name": m.name, "description": m.description, "variable": m.variable} for m in PLUS_MODELS.values()]
    output.data({"default": default, "models": rows, "plus": plus})
    width = max(len(model.name) for model in (*known, *PLUS_MODELS.values()))
    for model in known:
        state = "here     " if model.is_present else "not here "
        output.say(f"{model.name:<{width}}  {state} {model.description}")
    output.say(f"\nDefault: {default}. --model also takes the folder of a model in diffusers' layout.")
    for model in known:
        if not model.is_present and model.name != DEFAULT_MODEL:
            output.say(f"To get {model.name}: ace convert {model.name}")
    output.say(f"\nOn FLUX.1-Fill-dev, from the hub or where {BASE_VARIABLE} and the models' own variables point:")
    for model in PLUS_MODELS.values():
        output.say(f"{model.name:<{width}}  {model.description} ({model.variable})")


def _learnt(model: ModelFiles, output: Output) -> None:
    """Say what a model can draw from words."""
    known = model.vocabulary
    output.data(
        {"name": model.name, "folder": str(model.folder), "vocabulary": None if known is None else asdict(known)}
    )
    if known is None:
        output.say(f"{model.name} has no list of what it has learnt ({model.folder})")
        return
    things = ", ".join(f"{name} ({', '.join(others)})" if others else name for name, others in known.concepts.items())
    styles = "; ".join(", ".join(ways) for ways in known.styles.values())
    for title, text in (
        (f"{len(known.concepts)} things that {model.name} can draw from their names", things),
        ("Styles", styles),
        ("Places", ", ".join(known.places)),
        ("Backgrounds", ", ".join(known.grounds)),
        ("Colours", ", ".join(known.colours)),
        ("Words in pictures", f'"{known.letters}", up to {known.longest_word} characters'),
    ):
        output.say(f"{title}: {text}")


def doctor(json: Json = False) -> None:
    """Say what is installed, which device is used, what is missing and how to get it.

    \b
    ace doctor
    """
    import torch

    import ace
    from ace.conversation.recipe import package_versions
    from ace.data.world.sprites import SHIPPED_PACK, full_pack
    from ace.weights.sources import known_models

    output = Output(json)
    devices = {
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "mps": "Apple GPU" if torch.backends.mps.is_available() else None,
    }
    device = next((name for name, found in devices.items() if found), "cpu")
    missing: list[str] = []
    present = {model.name: model.is_present for model in known_models()}
    if not present["ace-tiny"]:
        missing.append("the model in the package: install ace-allround again, or name another with --model")
    if not (SHIPPED_PACK / "index.json").is_file():
        missing.append("the sprite pack in the package (`ace demo` needs it): install ace-allround again")
    if not (full_pack() / "index.json").is_file():
        missing.append("the full sprite pack (training only): ace data assets")
    for extra, packages in EXTRAS.items():
        absent = [package for package in packages if not _installed(package)]
        if absent:
            missing.append(f"{', '.join(absent)} ({extra}): {install_command(extra)}")
    facts = {
        "ace": ace.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device if device == "cpu" else f"{device} ({devices[device]})",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "packages": {name: version for name, version in package_versions().items() if name != "ace-allround"},
        "models": [name for name, here in present.items() if here],
        "missing": missing,
    }
    output.data(facts)
    output.say(f"ace {facts['ace']}, Python {facts['python']}, {facts['system']}")
    output.say(f"device: {facts['device']}; {facts['threads']} threads on {facts['cores']} cores, {facts['processor']}")
    output.say("packages: " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    output.say(f"models here: {', '.join(facts['models']) or 'none'}")
    output.say("missing: nothing" if not missing else "missing:")
    for line in missing:
        output.say(f"  {line}")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the picture goes.")] = Path(
        "out/demo.png"
    ),
    seed: Seed = None,
    steps: Steps = None,
    model: Model = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a model does, on inputs it has never seen: one picture of many tasks and a conversation.

    Inputs are made afresh by the procedural world: what the model has learnt, in scenes and words that it never saw.
    Nothing is left out; each answer stands beside the true one, the nearest first.

    \b
    ace demo
    ace demo --seed 7 -o seven.png
    """
    from ace.conversation.recipe import check_output
    from ace.errors import OutputError
    from ace.weights.sources import find_model

    began = time.monotonic()
    output = Output(json, quiet)
    check_numbers(steps, None)
    from ace.conversation.seeds import read_seed

    seed = 0 if seed is None else read_seed(seed)
    files = find_model(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise OutputError(f"the folder {out.parent} cannot be made: choose another place with --out") from None
    check_output(out)
    with output.progress("making held-out inputs") as tell:
        from ace.conversation.recipe import embed
        from ace.evaluation.demo import draw_demo, make_demo, plan_demo

        plan = plan_demo(seed, files.side_px)
        tell(0, None, f"loading {files.name}")
        pipeline = load(files, device)
        made = make_demo(pipeline, plan, seed, steps, lambda done, total: tell(done, total, "editing"))
        picture = draw_demo(made, files.name)
    embed(picture, out)
    seconds = round(time.monotonic() - began, 1)
    output.data(
        {
            "file": str(out),
            "seed": seed,
            "model": files.name,
            "num_inference_steps": made.num_inference_steps,
            "seconds": seconds,
        }
    )
    what = f"{len(made.panels)} tasks and a conversation, seed {seed}, {count_of(made.num_inference_steps, 'step')}"
    output.say(f"{short(out)}  {what}, {files.name}, {seconds:g} s")
    for line in _how_to_go_on():
        output.say(line)


def _how_to_go_on() -> list[str]:
    """What to type next, as it works here: the environment may not be active, and the studio not installed."""
    active = shutil.which("ace") is not None
    scripts = Path(sys.executable).parent
    activate = scripts / "activate"
    lines = ["", "next:"]
    if not active and activate.is_file():
        lines.append(f"  . {short(activate)}                      # so that `ace` is found")
    checkout = Path("Makefile").is_file() and "ace demo" in Path("Makefile").read_text(encoding="utf-8")
    if checkout:
        lines.append("  make chat                                  # the studio, in the browser")
        lines.append("  make teach                                 # ten pairs teach the model a new edit")
    else:
        missing = [name for name in EXTRAS["web"] if not _installed(name)]
        lines += [f"  {install_command('web')}"] if missing else []
        lines.append("  ace chat                                   # the studio, in the browser")
    lines.append('  ace edit photo.png "make the background blue" --mask mask.png -o out.png')
    return lines


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
