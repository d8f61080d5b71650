"""Fetching, drawing and packing the assets of the world. Offline: npm is a script of the test's own."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ace.data.world.assets import centre, encode, reduce_font, render_svg, write_pack
from ace.data.world.avatars import AVATAR_STYLES, list_identity
from ace.data.world.concepts import CORE, DROPPED, clean_name
from ace.data.world.packages import PACKAGES, Package, fetch
from ace.data.world.sprites import SHIPPED_PACK, SpriteLibrary
from ace.errors import CheckpointError, InputError, OutputError

CONTENT = b"the tarball of a package"
PACKAGE = Package("@some/thing", "1.0.0", hashlib.sha256(CONTENT).hexdigest(), "MIT")


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A program `npm` that packs whatever lies in `sent`, and counts how often it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "npm"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys, pathlib\n"
        "here = pathlib.Path(__file__).parent\n"
        "with open(here / 'calls', 'a') as calls: calls.write('x')\n"
        "sent = here / 'sent'\n"
        "if not sent.exists(): sys.exit('npm error code E404')\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--pack-destination') + 1])\n"
        "(folder / 'some-thing-1.0.0.tgz').write_bytes(sent.read_bytes())\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    (folder / "sent").write_bytes(CONTENT)
    return folder


def test_a_package_is_fetched_once(npm, tmp_path):
    for _ in range(2):
        assert fetch(PACKAGE, tmp_path / "tarballs").read_bytes() == CONTENT
    assert (npm / "calls").read_text() == "x"


def test_a_package_with_another_hash_is_refused_and_not_kept(npm, tmp_path):
    (npm / "sent").write_bytes(CONTENT + b"!")
    with pytest.raises(CheckpointError, match=r"@some/thing 1\.0\.0 has SHA-256"):
        fetch(PACKAGE, tmp_path / "tarballs")
    assert list((tmp_path / "tarballs").iterdir()) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(npm, tmp_path):
    (tmp_path / "tarballs").mkdir()
    (tmp_path / "tarballs" / PACKAGE.tarball).write_bytes(CONTENT[:5])
    assert fetch(PACKAGE, tmp_path / "tarballs").read_bytes() == CONTENT


def test_a_failing_npm_says_why(npm, tmp_path):
    (npm / "sent").unlink()
    with pytest.raises(OutputError, match=r"npm failed .*E404"):
        fetch(PACKAGE, tmp_path / "tarballs")


def test_every_package_is_pinned_and_openly_licensed():
    assert len({package.tarball for package in PACKAGES}) == len(PACKAGES)
    for package in PACKAGES:
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version) and re.fullmatch(r"[0-9a-f]{64}", package.sha256)
        assert package.licence in {"MIT", "Apache-2.0", "CC-BY-4.0", "CC0-1.0", "OFL-1.1", "Unicode-3.0"}


def _copy_shipped(pack: Path) -> bytes:
    """A small but whole pack of one sprite; returns its index."""
    with write_pack(pack) as writer:
        writer.add(encode(Image.new("RGBA", (8, 8), "red"), None))
        writer.finish({"master_px": 8, "concepts": [], "faces": [], "fonts": {}})
    return (pack / "index.json").read_bytes()


def test_a_failed_build_keeps_the_old_pack_and_leaves_nothing(tmp_path):
    pack = tmp_path / "pack"
    index = _copy_shipped(pack)
    with pytest.raises(AttributeError), write_pack(pack) as writer:
        writer.add(encode(None, None))  # a drawing that cannot be stored
    assert (pack / "index.json").read_bytes() == index
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_an_unfinished_build_is_refused(tmp_path):
    with pytest.raises(OutputError, match="not finished"), write_pack(tmp_path / "pack") as writer:
        writer.add(b"half of it")
    assert list(tmp_path.iterdir()) == []


def test_a_new_build_replaces_the_old_pack(tmp_path):
    pack = tmp_path / "pack"
    _copy_shipped(pack)
    with write_pack(pack) as writer:
        writer.add(encode(Image.new("RGBA", (9, 9), "blue"), None))
        writer.finish({"master_px": 9, "concepts": [], "faces": [], "fonts": {}})
    assert SpriteLibrary(pack).master_px == 9
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_killed_build_is_never_taken_for_a_pack(tmp_path):
    pack = tmp_path / "pack"
    code = (
        "import sys, time; from pathlib import Path; from ace.data.world.assets import write_pack\n"
        "with write_pack(Path(sys.argv[1])) as writer:\n"
        "    writer.add(b'half of it'); print('building', flush=True); time.sleep(60)\n"
    )
    build = subprocess.Popen([sys.executable, "-c", code, str(pack)], stdout=subprocess.PIPE)
    assert build.stdout is not None
    with build.stdout:
        assert build.stdout.readline() == b"building\n"
        build.send_signal(signal.SIGKILL)
        build.wait()
    assert not pack.exists()
    with pytest.raises(InputError, match="no sprite pack"):
        SpriteLibrary(pack)
    _copy_shipped(pack)  # what was left behind is not in the way
    assert SpriteLibrary(pack).master_px == 8
    for left in tmp_path.glob(".pack-*"):
        os.utime(left, (0, 0))
    _copy_shipped(pack)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]  # and is cleared away once it is old


def test_a_drawing_is_cut_to_its_outline_and_centred():
    picture = Image.new("RGBA", (100, 60))
    picture.paste("red", (70, 5, 95, 55))
    (square,) = centre([picture], 50)
    alpha = np.asarray(square)[..., 3] > 128
    assert square.size == (50, 50)
    assert np.flatnonzero(alpha.any(axis=1))[[0, -1]].tolist() == [1, 48]
    columns = np.flatnonzero(alpha.any(axis=0))
    assert abs(columns[0] - (49 - columns[-1])) <= 1 and 22 <= np.ptp(columns) <= 25


def test_pictures_of_one_identity_are_cut_alike():
    plain, bearded = Image.new("RGBA", (64, 64)), Image.new("RGBA", (64, 64))
    plain.paste("red", (20, 10, 40, 30))
    bearded.paste("red", (20, 10, 40, 30))
    bearded.paste("black", (25, 30, 35, 50))
    first, second = (np.asarray(p) for p in centre([plain, bearded], 40))
    assert np.array_equal(first[:18], second[:18])
    assert second[30, 20, 3] == 255 and first[30, 20, 3] == 0


def test_a_blank_drawing_is_an_error():
    with pytest.raises(OutputError, match="blank"):
        centre([Image.new("RGBA", (10, 10))], 8)


def test_an_svg_is_drawn_with_transparency():
    pytest.importorskip("resvg_py")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="2" height="4" fill="#00f"/></svg>'
    pixels = np.asarray(render_svg(svg, 40))
    assert pixels.shape == (40, 40, 4)
    assert pixels[20, 5].tolist() == [0, 0, 255, 255] and pixels[20, 35, 3] == 0


def test_lossless_pictures_come_back_bit_for_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[..., 3] = np.maximum(pixels[..., 3], 1)
    with Image.open(io.BytesIO(encode(Image.fromarray(pixels), None))) as back:
        assert np.array_equal(np.asarray(back.convert("RGBA")), pixels)


def test_a_reduced_font_has_only_the_characters_asked_for():
    ttlib = pytest.importorskip("fontTools.ttLib")
    font = (SHIPPED_PACK / "fonts" / "sans.ttf").read_bytes()
    content, characters = reduce_font([font], "AB你", None)
    assert characters == "AB"
    assert set(ttlib.TTFont(io.BytesIO(content)).getBestCmap()) == {65, 66}


@pytest.mark.parametrize("style", AVATAR_STYLES, ids=lambda style: style.name)
def test_edits_of_an_avatar_differ_in_one_attribute_and_its_options(style):
    plain, *edits = list_identity(style, 3)
    for edit in edits:
        (attribute,) = [name for name, value in plain.attributes.items() if edit.attributes[name] != value]
        component = {option for look in style.attributes[attribute].values() for option in look}
        assert {option for option in edit.options if edit.options[option] != plain.options.get(option)} <= component
    assert len({edit.key for edit in edits}) == len(edits)


def test_an_identity_is_always_the_same_face():
    style = AVATAR_STYLES[0]
    assert list_identity(style, 1) == list_identity(style, 1)
    assert list_identity(style, 1)[0].options != list_identity(style, 2)[0].options
    assert list_identity(style, 1, max_edits=4) == list_identity(style, 1)[:5]


def test_names_lose_capitals_accents_and_punctuation():
    assert clean_name("piñata") == "pinata"
    assert clean_name("T-Rex") == "tyrannosaurus"
    assert clean_name("upside-down face") == "upside down face"


def test_near_copies_are_dropped_and_core_concepts_are_not():
    assert DROPPED.fullmatch("three o’clock") and DROPPED.fullmatch("waxing gibbous moon")
    assert not any(DROPPED.fullmatch(name) for name in CORE)
    assert len(set(CORE)) == len(CORE)


def test_a_tarball_is_read_in_one_pass(tmp_path):
    from ace.data.world.packages import read_members

    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name in ("package/1.svg", "package/2.txt", "package/3.svg"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    found = list(read_members(tmp_path / "a.tgz", ".svg"))
    assert found == [("package/1.svg", b"package/1.svg"), ("package/3.svg", b"package/3.svg")]
