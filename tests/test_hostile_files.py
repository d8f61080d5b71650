"""Files that somebody else made, with wrong values of every kind: only errors of ours, one line each."""

from __future__ import annotations

import json
import random
import re
import struct
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from ace.adapter_files import AdapterSettings, _means, check_file, read_settings
from ace.cli import app
from ace.cli.terminal import Output, printable
from ace.conversation.recipe import Environment, Recipe
from ace.errors import AceError, CheckpointError, ConfigError, InputError
from ace.lists import read_objects, read_table
from ace.plus.sources import read_adapter_option
from ace.weights.adapters import AdapterChoice, match_adapters

ROOT = Path(__file__).parents[1]
RUNNER = CliRunner()
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Wrong values of any kind, as JSON and TOML have them
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.sampled_from(["../../etc/passwd", "\x1b[2J", "\x00", "a" * 5000, "~root", "{image9}", "nan"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def one_line(error: BaseException) -> bool:
    return isinstance(error, AceError) and "\n" not in str(error) and len(str(error)) < 1500


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """Within, errors of ours may be raised, and nothing else."""
    try:
        yield
    except AceError as error:
        if not one_line(error):
            raise AssertionError(str(error)) from error


def recipe() -> dict[str, Any]:
    made = Recipe(
        model="ace-tiny",
        model_sha256="0" * 64,
        instruction="a cat",
        seed=1,
        num_inference_steps=2,
        guidance_scale=3.0,
        guidance_rescale=0.0,
        size_px=(64, 64),
        settings={"feather_px": 3, "edits": True, "repainting_scale": 1},
        environment=Environment.here(),
    )
    return json.loads(made.to_json())


@quick
@given(data=st.data())
def test_a_recipe_with_any_wrong_value_is_read_or_refused_in_one_line(data):
    written = recipe()
    field = data.draw(st.sampled_from([*written, "settings.feather_px", "settings.size", "unknown"]))
    outer, _, inner = field.partition(".")
    if inner:
        written[outer][inner] = data.draw(VALUES)
    else:
        written[field] = data.draw(VALUES)
    with refused_in_one_line():
        read = Recipe.from_json(json.dumps(written))
        assert read.num_inference_steps <= 100_000 and max(read.size_px) <= 2**20
        from ace.conversation.job import Settings

        Settings.of_recipe(read)  # what is read can be used


@pytest.mark.parametrize("depth", [200, 5_000, 100_000])
def test_deep_json_and_toml_are_refused_in_one_line(tmp_path, depth):
    from ace.settings import read_toml

    deep = "[" * depth + "]" * depth
    with pytest.raises(InputError, match="damaged recipe"):
        Recipe.from_json('{"settings": ' + deep + "}")
    (tmp_path / "a.toml").write_text(f"a = {deep}")
    with refused_in_one_line():
        read_toml(tmp_path / "a.toml")
    (tmp_path / "a.jsonl").write_text(f'{{"a": {deep}}}\n')
    with refused_in_one_line():
        list(read_objects(tmp_path / "a.jsonl"))


@quick
@given(rows=st.lists(VALUES, max_size=4), junk=st.binary(max_size=60))
def test_lists_of_any_bytes_are_read_or_refused(tmp_path, rows, junk):
    lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in rows]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, junk]))
    for read in (lambda path: list(read_objects(path)), lambda path: list(read_table(path, ("a", "b"), "#;#"))):
        with refused_in_one_line():
            read(tmp_path / "a.jsonl")


def test_every_wrong_value_in_every_key_of_a_training_recipe_is_one_line(tmp_path):
    from ace.training.config import read_recipe

    source = (ROOT / "recipes" / "lora.toml").read_text()
    keys = re.findall(r"^([a-z_]+) = ", source, re.MULTILINE)
    assert keys
    for key in sorted(set(keys)):
        for wrong in ("nan", "inf", "-1e400", "[[[]]]", '"\\u001b[2J"', "{}", "1979-05-27", "99999999999999999999"):
            line = f"{key} = {wrong}".replace("\\", "\\\\")
            changed = re.sub(rf"^{key} = .*$", line, source, count=1, flags=re.MULTILINE)
            (tmp_path / "a.toml").write_text(changed)
            with refused_in_one_line():
                read_recipe(tmp_path / "a.toml")


# Adapters


def adapter(path: Path, tensors: dict[str, np.ndarray], settings: object = None) -> Path:
    save_file(tensors, path)
    if settings is not None:
        (path.parent / "adapter_config.json").write_text(json.dumps(settings))
    return path


def pair(rank: int = 2, **more: np.ndarray) -> dict[str, np.ndarray]:
    down, up = np.ones((rank, 8), np.float32), np.ones((8, rank), np.float32)
    return {"blocks.0.attn.q.lora_A.weight": down, "blocks.0.attn.q.lora_B.weight": up, **more}


@pytest.mark.parametrize(
    "settings",
    [
        [],
        "text",
        {"lora_alpha": [1]},
        {"lora_alpha": True},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400},
        {"alpha_pattern": [1, 2]},
        {"alpha_pattern": {"q": None}},
        {"alpha_pattern": {"q": float("inf")}},
        {"alpha_pattern": {f"q{n}": 1 for n in range(5000)}},
        {"use_rslora": "yes"},
        {"use_dora": 1},
    ],
)
def test_wrong_settings_of_an_adapter_are_one_line_before_any_work(tmp_path, settings):
    file = adapter(tmp_path / "a.safetensors", pair(), settings)
    with pytest.raises(CheckpointError, match=r"settings of a\.safetensors cannot be read") as caught:
        check_file(file)
    assert one_line(caught.value)


@quick
@given(settings=st.dictionaries(st.sampled_from(["lora_alpha", "alpha_pattern", "use_rslora", "r", "x"]), VALUES))
def test_any_settings_of_an_adapter_are_read_or_refused(tmp_path, settings):
    file = adapter(tmp_path / "a.safetensors", pair(), settings)
    with refused_in_one_line():
        found = read_settings(file)
        assert np.isfinite(found.strength("blocks.0.attn.q", 2))


def test_factors_without_a_rank_and_alphas_of_many_values_are_refused(tmp_path):
    for number, tensors in enumerate(
        (
            pair(rank=0),
            pair(**{"blocks.0.attn.q.alpha": np.ones(3, np.float32)}),
            {"a.lora_A.weight": np.ones(3, np.float32), "a.lora_B.weight": np.ones((3, 1), np.float32)},
        )
    ):
        with pytest.raises(CheckpointError, match=r"factor|alpha of") as caught:
            check_file(adapter(tmp_path / f"{number}.safetensors", tensors))
        assert one_line(caught.value)
    header = json.dumps({"a.lora_A.weight": {"dtype": "F32", "data_offsets": [0, 0]}}).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="does not describe a"):
        check_file(tmp_path / "b.safetensors")


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "1e9", "NaN"])
def test_strengths_that_are_no_numbers_are_refused(tmp_path, strength):
    file = adapter(tmp_path / "a.safetensors", pair())
    with pytest.raises(ConfigError):
        AdapterChoice.parse(f"{file}:{strength}")
    with pytest.raises(ConfigError):
        read_adapter_option(f"a.safetensors:{strength}")
    recorded = json.dumps([{"name": "a", "sha256": "0" * 64, "weight": float(strength)}])
    with pytest.raises(InputError, match="adapters cannot be read"):
        match_adapters(recorded, [])


def peft_means(pattern: str, layer: str) -> bool:
    return bool(re.match(rf"(.*\.)?({pattern})$", layer))


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "q",
            "attn.q",
            "blocks.0.attn.q",
            r"blocks\.\d+\.attn\.q",
            ".*attn.*",
            r"attn\.(q|k|v)",
            "(to_q|to_k)",
            "to_q|q",
        ),
        *(
            r"[a-z_]+blocks\.[0-9]+\.proj_out",
            r"^x\.attn\.to_q$",
            r"ffn\.net\.0?",
            "[^x]+q",
            r"(?:blocks\.1?[0-9])\.ffn.*",
        ),
    ],
)
def test_patterns_mean_what_peft_means(pattern):
    layers = ("blocks.0.attn.q", "blocks.12.ffn.net.0", "x.attn.to_q", "single_transformer_blocks.3.proj_out")
    assert [_means(pattern, one) for one in layers] == [peft_means(pattern, one) for one in layers]


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*b", "(a|a)*b", "(a+)+$", "(.*)*x", ".*" * 90 + "x", "(" * 100, "[", "a{9999999}", r"(a)\1", "(?=a)"],
)
def test_hostile_patterns_end_at_once(pattern):
    settings = AdapterSettings(4.0, {pattern: 9.0})
    assert settings.strength("a" * 3000, 2) == 2.0


# Files that once broke a reader


def test_files_that_once_broke_a_reader_are_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fuzz

    known = fuzz.seeds()
    assert known.keys() == fuzz.READERS.keys()
    kept = [(path.name.split("-")[0], path.read_bytes()) for path in sorted(fuzz.CORPUS.glob("*.bin"))]
    draw = random.Random(0)
    for name, files in known.items():
        if name != "session":  # opens its files otherwise while it is fuzzed
            kept += [(name, files[0]), (name, b""), (name, fuzz.changed(files[0], files[-1], draw))]
    for name, data in kept:
        with refused_in_one_line():
            fuzz.READERS[name](data, tmp_path)


# Terminals


def test_control_characters_of_foreign_text_do_not_reach_a_terminal(capsys):
    hostile = "\x1b]0;title\x07\x1b[2J\x9b31mred\u202ereversed\ud800"
    Output().say(f"made again: {hostile}")
    Output(json=True).data({"instruction": hostile})
    printed = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e") & set(printed)
    assert json.loads(printed[printed.index("{") :])["instruction"] == hostile
    assert printable("äöü 👩‍🚀 line\nbreak\ttab") == "äöü 👩‍🚀 line\nbreak\ttab"
    result = RUNNER.invoke(app, ["replay", "no\x1b[2J.png"])
    assert result.exit_code == 2 and "\x1b" not in result.output


# Versions

TABLE = re.compile(r"^\| `([A-Za-z0-9_-]+)` \| ([0-9.]+) \|", re.MULTILINE)


def test_no_floor_lies_below_the_table_of_the_threat_model():
    from packaging.requirements import Requirement
    from packaging.version import Version

    floors = dict(TABLE.findall((ROOT / "docs" / "threat-model.md").read_text()))
    assert floors.keys() >= {"pillow", "transformers", "python-multipart", "starlette", "torch", "h11"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"core": project["dependencies"], **project["optional-dependencies"]}
    named = {}
    for extra, texts in lists.items():
        for needed in map(Requirement, texts):
            if needed.name in floors:
                least = [Version(one.version) for one in needed.specifier if one.operator == ">="]
                assert least and least[0] >= Version(floors[needed.name]), f"{needed} of {extra}"
                named.setdefault(needed.name, []).append(extra)
    assert named.keys() == floors.keys()
    for extra, texts in lists.items():  # whoever brings fastapi brings a floor of starlette
        names = {Requirement(text).name for text in texts}
        assert "fastapi" not in names or "starlette" in names, extra
    pinned = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    for name, floor in floors.items():
        assert Version(pinned[name]) >= Version(floor), name


def test_the_nodes_of_comfyui_raise_no_floor_of_its_installation():
    pack = ROOT / "comfyui" / "ace_allround"
    lines = (pack / "requirements.txt").read_text().splitlines()
    assert all(line.startswith("#") for line in lines)
    assert tomllib.loads((pack / "pyproject.toml").read_text())["project"]["dependencies"] == []
