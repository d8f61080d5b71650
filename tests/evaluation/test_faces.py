"""Face scores by the paper's definitions, on a real photograph with the real detector and an embedding of random
weights."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from ace.cli import app
from ace.cli.contestants import NONCOMMERCIAL_FACES
from ace.errors import DataError
from ace.evaluation.benchmarks.faces import FacePair, make_table, read_pairs, similarities
from tests.extract.photographs import needs, photograph


class RandomEmbedder:
    """What `FaceEmbedder` computes, with random weights: a crop of the face through one layer, length 1."""

    def __init__(self):
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 16, 16, 8)

    @torch.no_grad()
    def embed(self, image, face):
        left, top, right, bottom = (int(v) for v in face.box)
        crop = Image.fromarray(image[max(top, 0) : bottom, max(left, 0) : right]).resize((112, 112))
        values = torch.from_numpy(np.asarray(crop, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        feature = self.layer(values).flatten().numpy()
        return feature / np.linalg.norm(feature)


@needs("mtcnn-p", "mtcnn-r", "mtcnn-o")
def test_the_same_face_scores_one_no_face_scores_nothing(tmp_path):
    from ace.extract.faces import FaceFinder

    face = Image.fromarray(photograph("astronaut"))
    face.save(tmp_path / "face.png")
    face.filter(ImageFilter.GaussianBlur(3)).save(tmp_path / "soft.png")
    Image.new("RGB", (200, 200), "gray").save(tmp_path / "empty.png")
    made = {"same": ("face", "face"), "soft": ("face", "soft"), "lost": ("face", "empty"), "none": ("empty", "face")}
    pairs = [FacePair(k, tmp_path / f"{a}.png", tmp_path / f"{b}.png") for k, (a, b) in made.items()]
    found = similarities(pairs, FaceFinder(), RandomEmbedder())
    assert found["same"] == pytest.approx(1) and 0 < found["soft"] < 1
    assert found["lost"] == 0 and found["none"] is None


def test_effective_score_is_the_share_above_the_papers_threshold(tmp_path):
    values = {"a": 0.9, "b": 0.35, "c": 0.34, "d": 0.0, "e": None}
    met = {"a": True, "b": False, "c": True, "d": None, "e": None}
    pairs = [FacePair(k, tmp_path, tmp_path, met[k]) for k in values]
    table = make_table("mine", pairs, values, "random")
    mean, hundred, half, share, both = (interval.mean for interval in table.rows[0].values)
    assert mean == pytest.approx(0.3975) and hundred == pytest.approx(39.75) and half == pytest.approx(69.875)
    assert share == 0.5 and both == pytest.approx(1 / 3)
    assert table.rows[0].count == 4 and "1 originals show no face" in table.notes[1]


def listed(folder, *rows):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = [{"id": key, "original": "a.png", "made": made} for key, made in rows]
    (folder / "faces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "faces.jsonl"


def test_without_weights_the_metric_is_listed_as_absent(tmp_path):
    file = listed(tmp_path, (1, "a.png"))
    result = CliRunner().invoke(app, ["eval", "faces", str(file), "-o", str(tmp_path / "run")])
    assert result.exit_code == 0 and "absent" in result.output
    page = (tmp_path / "run" / "table.md").read_text()
    assert "--face-weights" in page and "1 pairs are listed, 0 were scored" in page and "0.6700" in page


def test_weights_for_noncommercial_use_must_be_accepted(tmp_path, monkeypatch):
    file, weights = listed(tmp_path, (1, "a.png")), tmp_path / "arcface.onnx"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(NONCOMMERCIAL_FACES, digest, "somebody's weights")
    command = ["eval", "faces", str(file), "-o", str(tmp_path / "run"), "--face-weights", str(weights)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "--accept-noncommercial" in result.output and not (tmp_path / "run").exists()


def test_missing_and_damaged_results_are_counted(tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    pairs, missing = read_pairs(listed(tmp_path, (1, "a.png"), (2, "gone.png"), (3, "damaged.png")))
    assert [pair.id for pair in pairs] == ["1"] and missing == ["2", "3"]
    table = make_table("mine", pairs, {"1": 0.5}, "random", missing)
    assert table.notes[-1] == "PARTIAL: 2 of 3 results are missing: 2, 3."


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"2 ids occur twice, such as 1, 2;"):
        read_pairs(listed(tmp_path, (1, "a.png"), (1, "a.png"), (2, "gone.png"), (2, "a.png")))
