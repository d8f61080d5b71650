"""Requests: what is given, what is made of it, and what is refused before a model is loaded."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.errors import InputError
from ace.video.clips import read_clip, write_clip
from ace.video.request import ClipRequest, Window, open_request, plan_windows
from tests.video.clips import block_masks, ramp_clip

AREA = (48, 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_clip(folder / "clip.mkv", ramp_clip(), Fraction(16))
    write_clip(folder / "long.mkv", ramp_clip(41), Fraction(16))
    write_clip(folder / "masks.mkv", block_masks()[..., None].repeat(3, -1), Fraction(16))
    Image.fromarray(block_masks()[0]).save(folder / "mask.png")
    Image.fromarray(ramp_clip(seed=3)[0]).save(folder / "a.png")
    Image.fromarray(ramp_clip(seed=3)[8]).save(folder / "b.png")
    return folder


def draft_of(request: ClipRequest, **options):
    opened = open_request(request, AREA, **options)
    drafts = list(opened.drafts())
    return opened, drafts


def test_a_mask_image_is_for_all_frames_and_a_mask_clip_for_each(files):
    opened, (draft,) = draft_of(ClipRequest(video=files / "clip.mkv", mask=str(files / "masks.mkv")))
    assert np.array_equal(draft.masks, block_masks()) and opened.keeps
    assert np.array_equal(draft.frames[draft.masks == 0], ramp_clip()[draft.masks == 0])
    named_otherwise = files / "masks.upload"
    named_otherwise.write_bytes((files / "masks.mkv").read_bytes())
    _, (same,) = draft_of(ClipRequest(video=files / "clip.mkv", mask=str(named_otherwise)))
    assert np.array_equal(same.masks, block_masks())
    _, (draft,) = draft_of(ClipRequest(video=files / "clip.mkv", mask=str(files / "mask.png")))
    assert np.array_equal(draft.masks[8], block_masks()[0])


def test_a_tracked_mask_follows_the_block(files):
    from ace.video.track import track

    request = ClipRequest(video=files / "clip.mkv", mask=str(files / "mask.png"), track=True)
    (draft,) = open_request(request, AREA).drafts(lambda: track)
    both = (draft.masks > 0) & (block_masks() > 0)
    assert both[8].sum() / ((draft.masks[8] > 0) | (block_masks()[8] > 0)).sum() > 0.5  # unmoved: 0


def test_a_layout_moves_after_a_first_frame(files):
    request = ClipRequest(first=files / "a.png", layout="4,4,20,18:24,10,46,30", frames=5)
    _, (draft,) = draft_of(request)
    published = np.load(Path(__file__).with_name("published.npz"))
    assert np.array_equal(draft.frames[1:], published["move_frames"][1:])
    assert np.array_equal(draft.masks, published["move_masks"])
    assert np.array_equal(draft.frames[0], ramp_clip(seed=3)[0])


def test_first_and_last_frames_are_kept_over_a_control(files):
    request = ClipRequest(video=files / "clip.mkv", control="gray", first=files / "a.png", last=files / "b.png")
    _, (draft,) = draft_of(request)
    assert draft.masks[:, 0, 0].tolist() == [0, *[255] * 7, 0]
    assert np.array_equal(draft.frames[8], ramp_clip(seed=3)[8])
    assert np.ptp(draft.frames[4], axis=2).max() == 0  # grey


def test_a_clip_goes_on(files):
    opened, (draft,) = draft_of(ClipRequest(video=files / "long.mkv", continues=True, frames=21))
    assert opened.before == 24 and len(draft.frames) == 21
    assert np.array_equal(draft.frames[:17], ramp_clip(41)[24:]) and not draft.masks[:17].any()
    assert draft.masks[17:].min() == 255


def test_a_clip_of_13_frames_asked_as_9_is_spread_evenly(files, tmp_path):
    write_clip(tmp_path / "13.mkv", ramp_clip(13), Fraction(16))
    opened, (draft,) = draft_of(ClipRequest(video=tmp_path / "13.mkv", mask="box:1,1,9,9", frames=9))
    assert len(draft.frames) == 9 and len(set(opened.ids)) == 9
    assert np.array_equal(draft.frames[3][20:], ramp_clip(13)[opened.ids[3]][20:])


@pytest.mark.parametrize("total", [81, 85, 161, 241, 1001])
def test_windows_cover_everything_with_4n_plus_1_frames_each(total):
    windows = plan_windows(total, 81, 5)
    assert windows[0].start == 0 and windows[-1].stop == total
    for before, after in itertools.pairwise(windows):
        assert after.start + after.given == before.stop and after.given >= 5
    assert all(window.num_frames == 81 for window in windows)
    assert plan_windows(81, 81, 5) == (Window(0, 81, 0),)


def test_windows_read_on_where_the_one_before_ended(files):
    request = ClipRequest(video=files / "long.mkv", mask="box:4,4,20,20")
    opened, drafts = draft_of(request, most_frames=17)
    for window, draft in zip(opened.windows, drafts, strict=True):
        kept = draft.masks == 0
        assert np.array_equal(draft.frames[kept], ramp_clip(41)[window.start : window.stop][kept])
    before = np.full((17, 32, 48, 3), 7, np.uint8)
    given = opened.windows[1].given
    prepared = opened.prepared(drafts[1], opened.windows[1], before)
    assert np.all(prepared.frames[:given] == 7) and not prepared.masks[:given].any()


def test_options_and_files_make_the_request_again(files):
    request = ClipRequest(
        video=files / "clip.mkv",
        mask="box:1,2,3,4",
        control=str(files / "long.mkv"),
        first=files / "a.png",
        references=(files / "b.png",),
        fps=Fraction(30000, 1001),
        extend=(("left", 0.25),),
        frames=9,
        size=(64, 64),
    )
    assert ClipRequest.of_options(request.options(), list(request.files())) == request
    assert str(files) not in request.options()
    for damaged in ("", "[]", '{"frame": 3}', '{"video": true, "first": true}', '{"fps": "1/0"}'):
        with pytest.raises(InputError, match="damaged"):
            ClipRequest.of_options(damaged, [files / "a.png"])


WRONG = {
    "--mask needs a clip": {"mask": "box:1,1,5,5"},
    "--continue needs a clip": {"continues": True},
    "4n\\+1, use 9 or 13": {"frames": 12},
    "no control is called": {"video": "clip.mkv", "control": "sparkle"},
    "the outline of a mask": {"video": "clip.mkv", "control": "layout"},
    "ask for 9 or fewer": {"video": "clip.mkv", "frames": 13},
    "no side 'top'": {"video": "clip.mkv", "extend": (("top", 0.5),)},
    "goes with --video, --mask": {"video": "clip.mkv", "control": "gray", "extend": (("up", 0.5),)},
    "selects nothing of frames": {"video": "clip.mkv", "mask": "box:100,100,120,120"},
    "follows a mask of the first frame": {"video": "clip.mkv", "mask": "masks.mkv", "track": True},
    "no mask shape": {"video": "clip.mkv", "mask": "box:1,1,5,5", "grow": "star"},
    "at most 9": {"references": ("a.png",) * 10},
    "is 9 frames of 48x32 px, the clip 41": {"video": "long.mkv", "mask": "masks.mkv"},
    "1 frames are given and 1 asked": {"first": "a.png", "frames": 1},
    "no such file|cannot be read": {"video": "none.mp4"},
    "use 1 to 120": {"video": "clip.mkv", "fps": Fraction(500)},
    "was made for about": {"size": (4000, 4000)},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_made_is_refused_in_one_line(files, message):
    given = dict(WRONG[message])
    for name in ("video", "first"):
        if name in given:
            given[name] = files / given[name]
    if str(given.get("mask", "")).endswith(".mkv"):
        given["mask"] = str(files / given["mask"])
    if "references" in given:
        given["references"] = tuple(files / name for name in given["references"])
    with pytest.raises(InputError, match=message) as caught:
        open_request(ClipRequest(**given), AREA)
    assert "\n" not in str(caught.value)


def test_prepare_writes_what_the_model_sees(files, tmp_path):
    out = tmp_path / "prepared"
    arguments = ["video", "prepare", "--video", str(files / "clip.mkv"), "--mask", "box:4,8,16,20", "--size", "48x32"]
    result = CliRunner().invoke(app, [*arguments, "-i", str(files / "a.png"), "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["num_frames"] == 9 and len(report["references"]) == 1
    shown, mask = read_clip(out / "src_video.mkv").frames, read_clip(out / "src_mask.mkv").frames
    assert np.all(shown[:, 9:19, 5:15] == 128) and np.all(mask[:, 9:19, 5:15] == 255)
    assert CliRunner().invoke(app, [*arguments, "-o", str(out)]).exit_code == 2
