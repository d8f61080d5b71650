"""Reading and writing clips: any file within limits, or one line that says why not."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ace.errors import ConfigError, ImageError, OutputError
from ace.video.clips import (
    ClipLimits,
    check_clip_output,
    encode_clip,
    encode_into,
    open_clip,
    read_clip,
    read_metadata,
    resampled_ids,
    write_clip,
)
from tests.video.clips import ramp_clip


def written(folder: Path, name: str = "clip.mkv", frames: np.ndarray | None = None, fps: int = 16, **options) -> Path:
    path = folder / name
    write_clip(path, ramp_clip() if frames is None else frames, Fraction(fps), **options)
    return path


def with_sound(path: Path, frames: np.ndarray, fps: int = 16, pix_fmt: str = "yuv420p", codec: str = "libx264") -> Path:
    """A clip with a tone as long as it is."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream(codec, rate=fps)
        picture.pix_fmt, picture.height, picture.width = pix_fmt, *frames.shape[1:3]
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        length = len(frames) * 16_000 // fps
        tone = (8000 * np.sin(np.arange(length) * 0.2)).astype(np.int16)[None]
        block = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        block.rate = 16_000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(picture.encode(None))
    return path


def test_a_lossless_clip_holds_every_value(tmp_path):
    path = written(tmp_path)
    assert np.array_equal(read_clip(path).frames, ramp_clip())
    assert read_clip(path).fps == 16


def test_a_folder_of_png_files_is_a_clip(tmp_path):
    path = written(tmp_path, "frames")
    assert np.array_equal(read_clip(path).frames, ramp_clip())
    Image.new("RGB", (5, 5)).save(path / "00009.png")
    with pytest.raises(ImageError, match=r"00009\.png in frames has another size"):
        open_clip(path)


def test_h264_shows_nearly_the_same_colours(tmp_path):
    flat = np.empty((9, 32, 48, 3), np.uint8)
    flat[:] = (200, 60, 30)
    path = written(tmp_path, "clip.mp4", flat)
    assert np.abs(read_clip(path).frames.astype(int) - flat).max() <= 3


@pytest.mark.parametrize("file_format", ["MP4", "MKV"])
def test_the_same_frames_give_the_same_bytes(file_format):
    files = {encode_clip(ramp_clip(), Fraction(16), file_format, metadata={"comment": "recipe"}) for _ in range(2)}
    assert len(files) == 1


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_metadata_comes_back(tmp_path, name):
    text = '<x:xmpmeta a="é"/> ' * 2000
    assert read_metadata(written(tmp_path, name, metadata={"comment": text})) == text.strip() or text


def test_odd_sizes_are_kept(tmp_path):
    path = written(tmp_path, "clip.mp4", ramp_clip(9, 47, 31))
    assert open_clip(path).size == (47, 31)


def test_sound_is_copied_bit_for_bit(tmp_path):
    source = with_sound(tmp_path / "source.mp4", ramp_clip(17))

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]

    for name in ("out.mp4", "out.mkv"):
        assert packets(written(tmp_path, name, ramp_clip(17), sound=source)) == packets(source)


def test_rotation_in_the_metadata_turns_the_frames(tmp_path):
    path = written(tmp_path, "clip.mp4", ramp_clip(9, 48, 32))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # of version 0
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    file = open_clip(turned)
    assert file.size == (32, 48) and any("upright" in note for note in file.notes)
    expected = np.rot90(read_clip(path).frames[0], -1)
    assert np.array_equal(next(iter(file.frames())), expected)


def test_a_variable_rate_is_seen_and_made_constant(tmp_path):
    images = [Image.fromarray(frame) for frame in ramp_clip()]
    path = tmp_path / "clip.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[40, 200, *[40] * 7])
    file = open_clip(path)
    assert file.variable and file.seconds == pytest.approx(0.52)
    assert resampled_ids(file, Fraction(25)) == [0, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8]


def test_transparent_frames_lie_on_white(tmp_path):
    path = tmp_path / "clip.webp"
    frame = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    frame.save(path, save_all=True, append_images=[Image.new("RGBA", (32, 32), (0, 0, 255, 255))], lossless=True)
    clip = read_clip(path)
    assert clip.frames[0, 0, 0].tolist() == [255, 255, 255] and clip.frames[1, 0, 0].tolist() == [0, 0, 255]
    assert any("transparent" in note for note in clip.notes)


def test_one_image_is_a_clip_of_one_frame(tmp_path):
    Image.fromarray(ramp_clip()[0]).save(tmp_path / "a.png")
    assert read_clip(tmp_path / "a.png").frames.shape == (1, 32, 48, 3)


def test_ten_bits_are_read_as_eight_and_said(tmp_path):
    path = with_sound(tmp_path / "deep.mkv", ramp_clip(5), pix_fmt="yuv420p10le")
    assert any("10 bits" in note for note in open_clip(path).notes)


def test_hdr_is_refused(tmp_path):
    path = tmp_path / "hdr.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.pix_fmt, stream.width, stream.height = "yuv420p10le", 48, 32
        stream.codec_context.color_trc = 16
        for frame in ramp_clip(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match=r"HDR \(PQ\): convert it to SDR"):
        open_clip(path)


def test_more_than_the_limits_is_refused_in_one_line(tmp_path):
    path = written(tmp_path)
    for limits in (ClipLimits(frames=5), ClipLimits(pixels=100), ClipLimits(seconds=0.2)):
        with pytest.raises(ImageError) as caught:
            open_clip(path, limits)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\0\0\0\x18ftypmp42" + b"x" * 200,
        b"\x1a\x45\xdf\xa3" + b"\0" * 300,
        b"GIF89a" + b"\xff" * 40,
        b"plain words",
    ],
    ids=["empty", "playlist", "concat", "mp4", "mkv", "gif", "text"],
)
def test_what_is_no_clip_is_refused_in_one_line(tmp_path, data):
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        open_clip(path)
    assert "\n" not in str(caught.value) and "clip.mp4" in str(caught.value)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, name):
    data = written(tmp_path, name, ramp_clip(41, 96, 64)).read_bytes()
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cut off"):
        open_clip(cut)


def test_a_clip_that_cannot_be_written_leaves_nothing(tmp_path):
    def broken():
        yield ramp_clip()[0]
        yield np.zeros((4, 4, 3), np.uint8)

    with pytest.raises(OutputError):
        write_clip(tmp_path / "clip.mkv", broken(), Fraction(16))
    with pytest.raises(OutputError, match="without frames"):
        encode_into(tmp_path / "other.mkv", [], Fraction(16), "MKV")
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_checked_by_their_suffix(tmp_path):
    assert check_clip_output(tmp_path / "a.mp4") == "MP4"
    with pytest.raises(ConfigError, match="not lossless"):
        check_clip_output(tmp_path / "a.mp4", lossless=True)
    with pytest.raises(OutputError, match="no suffix"):
        check_clip_output(tmp_path / "a.xyz")
    with pytest.raises(OutputError, match="does not exist"):
        check_clip_output(tmp_path / "none" / "a.mp4")
