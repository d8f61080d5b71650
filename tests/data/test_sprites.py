"""The sprite library over the pack that ships with the package. Offline."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ace.data.world.sprites import HELD_OUT_STYLE, SHIPPED_PACK, STYLE_NAMES, STYLES, SpriteLibrary
from ace.errors import InputError


@pytest.fixture(scope="module")
def library():
    return SpriteLibrary(SHIPPED_PACK)


def test_every_core_concept_is_drawn_in_every_style(library):
    core = [concept for concept in library.concepts if concept.core]
    assert len(core) > 150
    assert all(library.styles_of(concept.slug) == STYLES for concept in core)


def test_only_the_held_out_style_has_gaps(library):
    for concept in library.concepts:
        assert set(STYLES) - set(library.styles_of(concept.slug)) <= {HELD_OUT_STYLE}


def test_concepts_have_distinct_plain_names(library):
    names = [concept.name for concept in library.concepts]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and name.replace(" ", "").isalnum() for name in names)
    assert {concept.slug for concept in library.concepts} == {name.replace(" ", "-") for name in names}


def test_every_style_has_words_for_it():
    assert set(STYLE_NAMES) == set(STYLES)
    words = [word for names in STYLE_NAMES.values() for word in names]
    assert len(set(words)) == len(words)


def test_every_picture_of_the_pack_can_be_decoded_and_fills_its_square(library):
    for concept in library.concepts:
        for style in library.styles_of(concept.slug):
            alpha = library.sprite(concept.slug, style, 32)[..., 3] > 24
            rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
            assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 29, (concept.slug, style)
            assert abs(rows[0] - (31 - rows[-1])) <= 3 and abs(columns[0] - (31 - columns[-1])) <= 3, (
                concept.slug,
                style,
            )


@pytest.mark.parametrize("size_px", [12, 39, 40, 41, 80, 150])
def test_a_sprite_has_the_size_asked_for(library, size_px):
    pixels = library.sprite("cat", "noto", size_px)
    assert pixels.shape == (size_px, size_px, 4) and pixels.dtype == np.uint8


def test_sizes_agree_with_one_another(library):
    """Small sprites come from a half-size copy: they must look like the reduced large one."""
    large = Image.fromarray(library.sprite("cat", "twemoji", 80))
    for size_px in (24, 40, 44):
        expected = np.asarray(large.resize((size_px, size_px), Image.Resampling.BICUBIC)).astype(float)
        found = library.sprite("cat", "twemoji", size_px).astype(float)
        assert np.abs(found[..., 3] - expected[..., 3]).mean() < 5


def test_alpha_is_straight(library):
    """The soft edge of a plain red heart is as red as its inside, not darkened by its alpha."""
    pixels = library.sprite("red-heart", "twemoji", 37)
    inside = pixels[pixels[..., 3] == 255].astype(float).mean(axis=0)
    edge = pixels[(pixels[..., 3] > 60) & (pixels[..., 3] < 200)].astype(float)
    assert len(edge) > 10
    assert np.abs(edge.mean(axis=0)[:3] - inside[:3]).max() < 25


def test_sprites_cannot_be_written_to(library):
    with pytest.raises(ValueError, match="read-only"):
        library.sprite("cat", "noto", 20)[0, 0] = 0


def test_unknown_names_are_refused_by_name(library):
    with pytest.raises(InputError, match="no concept 'flying-pig'"):
        library.sprite("flying-pig", "noto", 20)
    with pytest.raises(InputError, match="not drawn in style 'cubist': choose one of noto"):
        library.sprite("cat", "cubist", 20)
    with pytest.raises(InputError, match="no font 'wingdings'"):
        library.font("wingdings", 20)


def test_mono_style_has_no_colour(library):
    pixels = library.sprite("cat", "fluent-mono", 48)
    assert np.ptp(pixels[pixels[..., 3] > 128][:, :3].astype(int), axis=1).max() < 12


def test_every_face_can_be_edited_in_one_attribute(library):
    assert len(library.face_styles) >= 5
    for face in library.faces():
        edits = library.face_edits(face)
        assert edits
        for attribute, other in edits:
            assert other.identity == face.identity
            different = {name for name in face.attributes if face.attributes[name] != other.attributes[name]}
            assert different == {attribute}
            assert face in [back for _, back in library.face_edits(other)]


def test_a_face_edit_changes_the_face_only_where_it_must(library):
    for face in library.faces():
        before = library.face(face, library.master_px).astype(int)
        for attribute, other in library.face_edits(face):
            after = library.face(other, library.master_px).astype(int)
            changed = (np.abs(after - before).max(axis=2) > 8) & ((before[..., 3] > 8) | (after[..., 3] > 8))
            share = changed.sum() / (before[..., 3] > 8).sum()
            assert 0 < share < (0.75 if attribute == "hair" else 0.45), (face.key, other.key, share)


def test_shirt_edits_leave_the_upper_half_of_the_face_alone(library):
    tested = 0
    for face in library.faces():
        for attribute, other in library.face_edits(face):
            if attribute == "shirt":
                upper = slice(0, library.master_px // 2)
                before, after = (library.face(f, library.master_px)[upper].astype(int) for f in (face, other))
                shown = np.maximum(before[..., 3], after[..., 3]) > 8
                assert np.abs(before - after).max(axis=2)[shown].max() <= 4
                tested += 1
    assert tested


def test_fonts_draw_their_characters(library):
    for name in library.fonts:
        characters = library.font_characters(name)
        assert set("ABCXYZabcxyz0123456789!?") <= characters
        drawn = set()
        for character in "Hg8" + max(characters):
            canvas = Image.new("L", (60, 60))
            ImageDraw.Draw(canvas).text((8, 4), character, fill=255, font=library.font(name, 32))
            assert np.asarray(canvas).max() > 200
            drawn.add(canvas.tobytes())
        assert len(drawn) == 4
        licence = (SHIPPED_PACK / "fonts" / f"{name}-OFL.txt").read_text(encoding="utf-8")
        assert "SIL Open Font License" in licence


def test_one_font_draws_common_chinese(library):
    assert any(set("你好中国美好天") <= library.font_characters(name) for name in library.fonts)


def test_a_library_travels_to_another_process(library):
    library.sprite("dog", "noto", 24)
    copy = pickle.loads(pickle.dumps(library))
    assert len(pickle.dumps(library)) < 1000
    assert np.array_equal(copy.sprite("dog", "noto", 24), library.sprite("dog", "noto", 24))


def test_a_full_pack_in_the_cache_is_preferred(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    assert SpriteLibrary().pack == SHIPPED_PACK
    shutil.copytree(SHIPPED_PACK, tmp_path / "world" / "pack-v1")
    assert SpriteLibrary().pack == tmp_path / "world" / "pack-v1"


def test_a_truncated_or_older_pack_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no sprite pack in .* run `ace data assets`"):
        SpriteLibrary(tmp_path)
    pack = tmp_path / "pack"
    shutil.copytree(SHIPPED_PACK, pack)
    sprites = (pack / "sprites.bin").read_bytes()
    (pack / "sprites.bin").write_bytes(sprites[:-1])
    with pytest.raises(InputError, match="incomplete or of another version"):
        SpriteLibrary(pack)
    (pack / "sprites.bin").write_bytes(sprites)
    index = json.loads((pack / "index.json").read_text(encoding="utf-8"))
    (pack / "index.json").write_text(json.dumps(index | {"version": 0}), encoding="utf-8")
    with pytest.raises(InputError, match="incomplete or of another version"):
        SpriteLibrary(pack)
