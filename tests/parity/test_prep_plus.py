"""`canvas.prepare_published` against the canvases, masks and answers that the published ACE++ code made."""

import numpy as np
import pytest
from PIL import Image

from ace.plus.canvas import prepare_published
from tests.parity.resampling import off_by_levels


def picture(case, name):
    return Image.fromarray(case.tensors[name].numpy()) if name in case.tensors else None


@pytest.mark.parity("prep_plus")
def test_published_canvas_is_the_recorded_one(case):
    args = dict(case.meta["args"])
    canvas = prepare_published(
        picture(case, "in.reference"),
        picture(case, "in.edit"),
        picture(case, "in.mask"),
        size=(args.pop("width"), args.pop("height")),
        max_seq_length=args.pop("max_seq_len"),
        **args,
    )
    np.testing.assert_array_equal(canvas.mask, case.tensors["out.edit_mask"].numpy())
    np.testing.assert_allclose(canvas.content, case.tensors["out.edit_image"].numpy(), atol=1e-5)
    assert (canvas.change is not None) == ("out.change_image" in case.tensors)
    if canvas.change is not None:
        np.testing.assert_allclose(canvas.change, case.tensors["out.change_image"].numpy(), atol=1e-5)
        whole = case.tensors["out.content_image"].numpy()
        np.testing.assert_allclose(canvas.change + canvas.content, whole, atol=1e-5)
    if case.meta["slice_w"]:
        assert canvas.target[0] == case.meta["slice_w"] + 30
        assert canvas.output_size == (case.meta["out_w"], case.meta["out_h"])


@pytest.mark.parity("prep_plus")
def test_the_answer_is_cut_out_as_recorded(case):
    args = dict(case.meta["args"])
    canvas = prepare_published(
        picture(case, "in.reference"),
        picture(case, "in.edit"),
        picture(case, "in.mask"),
        size=(args.pop("width"), args.pop("height")),
        max_seq_length=args.pop("max_seq_len"),
        **args,
    )
    generated = Image.fromarray(case.tensors["in.post_canvas"].numpy())
    recorded = case.tensors["out.post"].numpy().astype(int)
    assert off_by_levels(lambda: np.asarray(canvas.cut(generated)), recorded) <= 1
