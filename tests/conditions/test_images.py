"""Image intake: what is refused, what is converted, what is carried; masks; the geometry of model inputs."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, features

from ace.conditions.images import (
    aspect_size,
    fit_size,
    normalise_image,
    open_image,
    prepare_image,
    prepare_mask,
    prepare_published,
)
from ace.conditions.masks import normalise_mask, open_mask
from ace.errors import ImageError, MaskError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(width=40, height=24, seed=0):
    """A colourful picture without symmetry."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def pixels(image):
    return np.asarray(image).astype(int)


def png_header(width, height, bit_depth=8, colour_type=2):
    """The first chunks of a PNG that claims a size, with a few bytes of data only."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def png_16_bit_rgb(values):
    """A PNG with 16 bits per channel (Pillow reads but does not write them). values: uint16 (H, W, 3)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + values[row].astype(">u2").tobytes() for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# What is carried and converted


def test_an_upright_rgb_picture_passes_as_the_very_same_object():
    image = picture()
    opened = normalise_image(image)
    assert opened.image is image
    assert opened.stored is image
    assert opened.alpha is None
    assert opened.icc_profile is None
    assert opened.converted is None


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "webp"])
def test_lossless_formats_are_read_to_the_pixel(tmp_path, suffix):
    picture().save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    opened = open_image(tmp_path / f"a.{suffix}")
    assert opened.image.mode == "RGB"
    assert opened.name == f"a.{suffix}"
    np.testing.assert_array_equal(opened.image, picture())


def test_a_stream_is_read_like_a_file():
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    stream.seek(0)
    np.testing.assert_array_equal(open_image(stream).image, picture())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_every_exif_orientation_is_applied_once(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (48, 32), "black")
    ImageDraw.Draw(upright).rectangle((0, 0, 15, 7), fill="white")  # top left
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # transpositions that undo each orientation
    raw = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw.save(tmp_path / f"a.{suffix}", exif=exif)
    opened = open_image(tmp_path / f"a.{suffix}")
    assert opened.size == (48, 32)
    assert np.abs(pixels(opened.image) - pixels(upright)).mean() < 6
    again = normalise_image(opened.image)
    assert again.image is opened.image  # passing through twice turns once


def test_broken_exif_does_not_stop_a_good_picture(tmp_path):
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert open_image(tmp_path / "a.jpg").size == (40, 24)


def test_alpha_is_carried_and_composited_over_white_for_the_model(tmp_path):
    image = picture().convert("RGBA")
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    image.save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png")
    np.testing.assert_array_equal(opened.alpha, alpha)
    np.testing.assert_array_equal(opened.stored, picture())
    expected = pixels(picture()) * pixels(alpha)[..., None] / 255 + 255 - pixels(alpha)[..., None]
    assert np.abs(pixels(opened.image) - expected).max() <= 1
    assert opened.converted is None


def test_a_transparent_palette_and_a_transparent_colour_become_alpha(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 4, 8))
    image.save(tmp_path / "p.png", transparency=0)
    opened = open_image(tmp_path / "p.png")
    assert opened.converted == "palette to RGB"
    assert opened.mode == "P"
    assert opened.alpha.getpixel((0, 0)) == 255
    assert opened.alpha.getpixel((7, 0)) == 0
    assert opened.image.getpixel((0, 0)) == (200, 100, 50)
    assert opened.image.getpixel((7, 0)) == (255, 255, 255)

    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert open_image(tmp_path / "key.png").alpha.getextrema() == (0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_common_mode_leaves_as_rgb(mode):
    source = picture().convert("RGBA") if mode == "LA" else picture()
    opened = normalise_image(source.convert(mode))
    assert opened.image.mode == "RGB"
    assert opened.stored.mode == "RGB"
    assert opened.mode == mode
    assert (opened.alpha is not None) == (mode in ("LA", "RGBA"))
    grey = np.abs(pixels(opened.image) - pixels(picture().convert("L"))[..., None]).mean()
    assert grey < 130  # still the same scene


def test_premultiplied_alpha_is_undone():
    image = Image.new("RGBA", (2, 2), (200, 100, 50, 128))
    opened = normalise_image(image.convert("RGBa"))
    assert np.abs(pixels(opened.stored) - (200, 100, 50)).max() <= 2
    assert opened.alpha.getpixel((0, 0)) == 128


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
        opened = open_image(tmp_path / f"a.{suffix}")
        assert opened.converted is None  # nothing is lost: `deep` has them
        np.testing.assert_array_equal(opened.deep[..., 0], ramp)
        assert np.abs(pixels(opened.image)[0, :, 0] - np.arange(256)).max() <= 1


def test_sixteen_bit_colour_is_kept_beside_what_the_model_reads(tmp_path):
    values = (pixels(picture()) * 257).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png_16_bit_rgb(values))
    opened = open_image(tmp_path / "a.png")
    np.testing.assert_array_equal(opened.deep, values)
    with Image.open(tmp_path / "a.png") as image:
        assert normalise_image(image).converted == "16-bit to 8-bit"
    np.testing.assert_array_equal(opened.image, picture())


def test_floating_point_in_a_known_range_is_converted_and_others_refused():
    ramp = np.linspace(0, 1, 50, dtype=np.float32).reshape(5, 10)
    assert normalise_image(Image.fromarray(ramp)).image.getpixel((9, 4)) == (255, 255, 255)
    assert normalise_image(Image.fromarray(ramp * 200)).image.getpixel((9, 4)) == (200, 200, 200)
    for wrong in (ramp * 1000, ramp - 0.5, ramp * np.nan):
        with pytest.raises(ImageError, match="8-bit"):
            normalise_image(Image.fromarray(wrong))


def test_cmyk_is_converted_once_and_reported(tmp_path):
    picture().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    opened = open_image(tmp_path / "a.jpg")
    assert opened.converted == "CMYK to RGB"
    assert opened.icc_profile is None
    assert np.abs(pixels(opened.image) - pixels(picture())).mean() < 8


def test_an_rgb_profile_is_carried_and_a_profile_of_another_colour_space_is_not(tmp_path):
    picture().save(tmp_path / "a.png", icc_profile=SRGB)
    assert open_image(tmp_path / "a.png").icc_profile == SRGB
    grey = bytearray(SRGB)
    grey[16:20] = b"GRAY"
    picture().convert("L").save(tmp_path / "g.png", icc_profile=bytes(grey))
    assert open_image(tmp_path / "g.png").icc_profile is None


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    for suffix in ("gif", "webp", "png"):
        extra = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=50, **extra)
        opened = open_image(tmp_path / f"a.{suffix}")
        assert opened.image.getpixel((3, 3)) == (255, 0, 0)
        assert "animation to its first frame" in opened.converted


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path):
    picture().save(tmp_path / "a.avif")
    assert open_image(tmp_path / "a.avif").size == (40, 24)


# What is refused


def test_a_60000_by_60000_px_picture_is_refused_from_its_header(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_header(60000, 60000))
    with pytest.raises(ImageError, match=r"huge\.png .*too large.*at most 64 million pixels"):
        open_image(tmp_path / "huge.png")


def test_the_limit_is_checked_before_decoding(tmp_path):
    (tmp_path / "big.png").write_bytes(png_header(9000, 8000))  # has no pixel data: decoding would say damaged
    with pytest.raises(ImageError, match="9000x8000 px, too large"):
        open_image(tmp_path / "big.png")
    with pytest.raises(ImageError, match="40x24 px, too large"):
        normalise_image(picture(), max_pixels=900)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_cut_off_file_is_refused_in_one_line(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    picture(200, 150).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * share))])
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"cut.{suffix}")


def test_damaged_bytes_never_raise_anything_but_image_error(tmp_path):
    rng = np.random.default_rng(5)
    for suffix in ("png", "jpg", "webp", "gif", "tiff", "ppm"):
        path = tmp_path / f"a.{suffix}"
        picture(64, 48).save(path)
        whole = bytearray(path.read_bytes())
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(damaged), 400), 4):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            with contextlib.suppress(ImageError):
                open_image(path)


def test_missing_files_folders_and_texts_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="folder"):
        open_image(tmp_path)
    for name, content in (("note.png", b"not a picture"), ("empty.png", b""), ("page.svg", b"<svg/>")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match="not a picture"):
            open_image(tmp_path / name)


def test_formats_outside_the_list_are_not_even_tried(tmp_path):
    picture().save(tmp_path / "a.eps")
    picture().save(tmp_path / "a.ico")
    for name in ("a.eps", "a.ico"):
        with pytest.raises(ImageError, match="PNG, JPEG or WebP"):
            open_image(tmp_path / name)


def test_messages_name_the_file_but_never_its_folder(tmp_path):
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "gone.png")
    assert str(tmp_path) not in str(caught.value)


# Masks


def disc(size=(40, 24), mode="L", background=0, colour=255):
    mask = Image.new(mode, size, background)
    ImageDraw.Draw(mask).ellipse((8, 4, 28, 20), fill=colour)
    return mask


def test_white_means_change_and_grey_follows_the_threshold(tmp_path):
    disc().save(tmp_path / "m.png")
    mask = open_mask(tmp_path / "m.png", (40, 24))
    assert mask.mode == "L"
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask, disc())
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    weights = np.asarray(normalise_mask(ramp, (256, 1)))[0].astype(int)
    np.testing.assert_array_equal(weights > 128, np.arange(256) > 128)
    assert np.abs(weights - np.arange(256)).max() <= 8


@pytest.mark.parametrize("colour", [(0, 0, 0, 255), (255, 255, 255, 255), (255, 0, 0, 255), (20, 160, 90, 128)])
def test_strokes_of_one_colour_on_a_transparent_canvas_are_the_mask(colour):
    painted = disc(mode="RGBA", background=(0, 0, 0, 0), colour=colour)
    np.testing.assert_array_equal(normalise_mask(painted, (40, 24)), disc())


def test_black_and_white_strokes_on_a_transparent_canvas_follow_their_brightness():
    painted = disc(mode="RGBA", background=(0, 0, 0, 0), colour=(255, 255, 255, 255))
    ImageDraw.Draw(painted).rectangle((0, 20, 39, 23), fill=(0, 0, 0, 255))
    expected = disc()
    ImageDraw.Draw(expected).rectangle((0, 20, 39, 23), fill=0)
    np.testing.assert_array_equal(normalise_mask(painted, (40, 24)), expected)


def test_an_opaque_alpha_channel_changes_nothing():
    np.testing.assert_array_equal(normalise_mask(disc().convert("RGBA"), (40, 24)), disc())


def test_one_bit_palette_and_sixteen_bit_masks_are_read():
    wide = Image.fromarray(np.asarray(disc()).astype(np.uint16) * 257)
    for mask in (disc().convert("1"), disc().convert("P"), wide):
        np.testing.assert_array_equal(normalise_mask(mask, (40, 24)), disc())


def test_a_mask_is_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    disc().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(open_mask(tmp_path / "m.png", (40, 24)), disc())


def test_masks_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(MaskError, match=r"mask is 40x24 px, its image 41x24 px"):
        normalise_mask(disc(), (41, 24))
    with pytest.raises(MaskError, match="lies on its side"):
        normalise_mask(disc(), (24, 40))


def test_a_photograph_given_as_a_mask_is_refused_and_coloured_strokes_are_not():
    rows, columns = np.mgrid[0:64, 0:64]
    sunset = np.stack([60 + 2 * rows, 40 + rows + columns, 160 - rows], axis=2).astype(np.uint8)
    with pytest.raises(MaskError, match="a colour picture: a mask is white where"):
        normalise_mask(Image.fromarray(sunset), (64, 64))
    strokes = np.zeros((64, 64, 3), np.uint8)
    strokes[8:40, 8:40] = (255, 220, 0)
    assert np.asarray(normalise_mask(Image.fromarray(strokes), (64, 64))).mean() == pytest.approx(255 / 4)


def test_uniform_masks_are_refused_and_say_what_to_do():
    with pytest.raises(MaskError, match="selects nothing: paint"):
        normalise_mask(Image.new("L", (8, 8), 0), (8, 8))
    with pytest.raises(MaskError, match="selects the whole picture: leave the mask out"):
        normalise_mask(Image.new("L", (8, 8), 255), (8, 8))
    with pytest.raises(MaskError, match="brightest value is 1, white is 255"):
        normalise_mask(disc(colour=1), (40, 24))
    with pytest.raises(MaskError, match="selects nothing"):
        normalise_mask(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (8, 8))


# Geometry


@pytest.mark.parametrize("cell_px", [8, 16])
@pytest.mark.parametrize("budget", [1, 16, 64, 1024, 4096])
@pytest.mark.parametrize("enlarge", [False, True])
def test_sizes_are_whole_cells_within_the_budget_and_never_zero(cell_px, budget, enlarge):
    rng = np.random.default_rng(budget)
    for _ in range(60):
        width = int(rng.integers(1, 5000))
        height = int(np.clip(width * np.exp(rng.uniform(-2.5, 2.5)), 1, 5000))
        across, down = fit_size(width, height, budget, cell_px, enlarge=enlarge)
        assert across % cell_px == 0
        assert down % cell_px == 0
        assert min(across, down) >= cell_px
        assert (across // cell_px) * (down // cell_px) <= budget
        if not enlarge:
            assert across <= max(width, cell_px)
            assert down <= max(height, cell_px)


def test_a_picture_of_whole_cells_within_the_budget_keeps_its_size():
    assert fit_size(512, 512, 1024, 16) == (512, 512)
    assert fit_size(48, 160, 1024, 16) == (48, 160)
    assert fit_size(64, 64, 64, 8, enlarge=True) == (64, 64)


def test_small_pictures_are_enlarged_only_when_asked():
    assert fit_size(24, 24, 64, 8) == (24, 24)
    assert fit_size(24, 24, 64, 8, enlarge=True) == (64, 64)
    assert fit_size(3, 5, 64, 8) == (8, 8)


def test_our_sizes_keep_the_aspect_better_than_rounding_down():
    rng = np.random.default_rng(1)
    ours, published = [], []
    for _ in range(200):
        width, height = (int(side) for side in rng.integers(300, 4000, 2))
        for errors, flag in ((ours, False), (published, True)):
            across, down = fit_size(width, height, 64, 8, published=flag)
            errors.append(abs(np.log(across * height / (down * width))))
    assert np.mean(ours) < 0.7 * np.mean(published)


def test_the_published_rule_turns_small_sides_to_zero_and_ours_does_not():
    assert fit_size(15, 40, 1024, 16, published=True) == (0, 32)
    assert fit_size(15, 40, 1024, 16) == (16, 32)
    with pytest.raises(ImageError, match="at least 16 px"):
        prepare_published(picture(15, 40), None, task="", budget=1024)


def test_a_panorama_is_kept_whole_and_a_ribbon_refused():
    assert fit_size(1600, 200, 64, 8) == (168, 24)
    with pytest.raises(ImageError, match="16 to 1"):
        fit_size(1700, 100, 64, 8)
    with pytest.raises(ImageError):
        fit_size(0, 10, 64, 8)


def test_the_output_size_restores_the_aspect():
    assert aspect_size((100, 75), (72, 56)) == (73, 55)
    assert aspect_size((64, 64), (64, 64)) == (64, 64)


def test_preparing_uses_the_whole_picture():
    image = Image.new("RGB", (400, 100), "black")
    image.paste((255, 255, 255), (0, 0, 4, 100))
    image.paste((255, 255, 255), (396, 0, 400, 100))
    array = prepare_image(image, (128, 32))
    assert array.shape == (3, 32, 128)
    assert array.dtype == np.float32
    assert array[:, :, 0].min() > 0.9
    assert array[:, :, -1].min() > 0.9
    assert array[:, :, 10:-10].max() < -0.9
    assert array.min() >= -1
    assert array.max() <= 1


def test_a_picture_at_the_model_size_is_only_rescaled():
    array = prepare_image(picture(), (40, 24))
    np.testing.assert_allclose(array, pixels(picture()).transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_a_thin_mask_survives_a_large_reduction():
    mask = Image.new("L", (3000, 2000), 0)
    mask.putpixel((1000, 1999), 255)
    prepared = prepare_mask(mask, (64, 40))
    assert prepared.shape == (1, 40, 64)
    assert prepared.sum() == 1
    assert prepared[0, 39, 21] == 1
    ImageDraw.Draw(mask).line((0, 0, 2999, 0), fill=255)
    assert prepare_mask(mask, (64, 40))[0, 0].all()


def test_no_mask_means_everything_and_enlarging_keeps_the_shape():
    assert prepare_mask(None, (8, 16)).shape == (1, 16, 8)
    assert prepare_mask(None, (8, 16)).all()
    half = Image.new("L", (4, 4), 0)
    half.paste(255, (2, 0, 4, 4))
    np.testing.assert_array_equal(prepare_mask(half, (8, 8))[0], np.repeat(np.repeat(np.asarray(half) > 0, 2, 0), 2, 1))


def test_the_published_task_names_blank_the_masked_area():
    image, mask = picture(64, 64), disc((64, 64))
    for task in ("inpainting", "Try On", "Inpainting"):
        array, change = prepare_published(image, mask, task=task, budget=1024)
        assert (array[:, change[0] > 0] == -1).all()
        assert change.sum() > 0
    array, change = prepare_published(image, mask, task="anything else", budget=1024)
    assert (array[:, change[0] > 0] > -1).any()
