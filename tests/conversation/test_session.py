"""Sessions are trees that survive kills, reloads and hostile folders."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ace.conditions.images import normalise_image
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.conversation.recipe import Environment, Recipe, read
from ace.conversation.session import Session
from ace.errors import OutputError, SessionError


def picture(seed=0, mode="RGB", size=(24, 16)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    return Image.fromarray(values)


def half_mask(size=(24, 16)):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def recipe(instruction, seed=1):
    return Recipe(
        model="ace-tiny",
        model_sha256="0" * 64,
        instruction=instruction,
        seed=seed,
        num_inference_steps=10,
        guidance_scale=4.5,
        guidance_rescale=0.5,
        size_px=(24, 16),
        environment=Environment.here(),
    )


def add(session, instruction="change it", images=(), masks=(), answer=None, **options):
    unit = ConditionUnit(instruction, images, masks)
    return session.add_node(unit, picture(99) if answer is None else answer, recipe(instruction), **options)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A tree of edits


def test_a_node_comes_back_whole_after_reopening(tmp_path):
    session = Session.create(tmp_path / "s")
    latents = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    node = add(
        session,
        "repaint {image} like {image1}",
        (picture(1), picture(2, size=(10, 30))),
        (half_mask(), None),
        latents=latents,
    )
    again = Session.open(tmp_path / "s")
    assert again.nodes() == (node,)
    assert again.latest() == node
    assert again.node("0001").recipe == recipe("repaint {image} like {image1}")
    (turn,) = again.history("0001")
    np.testing.assert_array_equal(turn.answer, picture(99))
    np.testing.assert_array_equal(turn.unit.images[0], picture(1))
    np.testing.assert_array_equal(turn.unit.images[1], picture(2, size=(10, 30)))
    np.testing.assert_array_equal(turn.unit.masks[0], half_mask())
    assert turn.unit.masks[0].mode == "L"
    assert turn.unit.masks[1] is None
    np.testing.assert_array_equal(again.latents("0001"), latents)
    assert read(node.answer_path) == node.recipe


def test_an_empty_session_has_no_nodes(tmp_path):
    session = Session.create(tmp_path / "s")
    assert session.nodes() == ()
    assert session.latest() is None
    with pytest.raises(SessionError, match="no node 0001: it has none yet"):
        session.history("0001")


def test_history_follows_the_branch_and_is_oldest_first(tmp_path):
    session = Session.create(tmp_path / "s")
    add(session, "one", answer=picture(1))
    add(session, "two", answer=picture(2), parents=("0001",))
    add(session, "three", answer=picture(3), parents=("0002",))
    add(session, "other two", answer=picture(4), parents=("0001",))
    add(session, "merged", answer=picture(5), parents=("0004", "0003"))
    for opened in (session, Session.open(tmp_path / "s")):
        assert [turn.unit.instruction for turn in opened.history("0003")] == ["one", "two", "three"]
        assert [turn.unit.instruction for turn in opened.history("0005")] == ["one", "other two", "merged"]
        assert opened.node("0005").parents == ("0004", "0003")
        assert opened.latest().id == "0005"


def test_an_answer_that_is_the_next_input_is_one_object_before_and_after_reloading(tmp_path):
    session = Session.create(tmp_path / "s")
    add(session, "draw", answer=picture(1))
    add(session, "again", (session.answer("0001").image,), answer=picture(2), parents=("0001",))
    add(session, "and again", (session.answer("0002").image,), answer=picture(3), parents=("0002",))
    for opened in (session, Session.open(tmp_path / "s")):
        first, second, third = opened.history("0003")
        assert second.unit.images[0] is first.answer
        assert third.unit.images[0] is second.answer
        assert third.answer is opened.answer("0003").image
        request = LongContextConditionUnit(ConditionUnit("go on", (third.answer,)), (first, second, third))
        assert len(request.frames()) == 3
    assert not list((tmp_path / "s" / "nodes" / "0002").glob("input*"))


def test_the_answer_given_is_the_object_that_history_returns(tmp_path):
    session = Session.create(tmp_path / "s")
    answer = picture(1)
    add(session, "draw", answer=answer)
    assert session.history("0001")[0].answer is answer


def test_a_copy_of_the_parents_answer_counts_as_the_parents_answer(tmp_path):
    session = Session.create(tmp_path / "s")
    node = add(session, "draw", answer=picture(1))
    with Image.open(node.answer_path) as loaded_apart:
        add(session, "again", (loaded_apart.convert("RGB"),), parents=("0001",))
    for opened in (session, Session.open(tmp_path / "s")):
        first, second = opened.history("0002")
        assert second.unit.images[0] is first.answer


def test_another_picture_is_not_mistaken_for_the_parents_answer(tmp_path):
    session = Session.create(tmp_path / "s")
    add(session, "draw", answer=picture(1))
    add(session, "again", (picture(2),), parents=("0001",))
    first, second = Session.open(tmp_path / "s").history("0002")
    assert second.unit.images[0] is not first.answer
    np.testing.assert_array_equal(second.unit.images[0], picture(2))


def test_alpha_and_profile_of_an_answer_are_kept(tmp_path):
    answer = picture(1, "RGBA")
    answer.info["icc_profile"] = b"\0" * 16 + b"RGB " + b"\0" * 108
    session = Session.create(tmp_path / "s")
    add(session, answer=answer)
    opened = Session.open(tmp_path / "s").answer("0001")
    np.testing.assert_array_equal(opened.alpha, answer.getchannel("A"))
    np.testing.assert_array_equal(opened.stored, answer.convert("RGB"))
    assert opened.icc_profile == answer.info["icc_profile"]


def test_node_names_keep_counting_beyond_9999(tmp_path):
    session = Session.create(tmp_path / "s")
    add(session)
    (tmp_path / "s" / "nodes" / "0001").rename(tmp_path / "s" / "nodes" / "9999")
    node_file = tmp_path / "s" / "nodes" / "9999" / "node.json"
    node_file.write_text(node_file.read_text().replace('"id": "0001"', '"id": "9999"'))
    assert add(session, parents=("9999",)).id == "10000"
    assert [node.id for node in Session.open(tmp_path / "s").nodes()] == ["9999", "10000"]


# Whole or not at all


def test_a_refused_node_leaves_the_session_as_it_was(tmp_path):
    session = Session.create(tmp_path / "s")
    add(session)
    before = contents(tmp_path / "s")
    with pytest.raises(SessionError, match="no node 0007: there are 0001 to 0001"):
        add(session, parents=("0007",))
    with pytest.raises(SessionError, match="instruction"):
        session.add_node(ConditionUnit("this"), picture(), recipe("that"))
    with pytest.raises(SessionError, match="floating-point"):
        add(session, latents=np.array([1, 2]))
    with pytest.raises(OutputError, match="cannot be stored"):
        add(session, images=(picture(1),), answer=Image.new("RGB", (0, 0)))
    assert contents(tmp_path / "s") == before
    assert [path.name for path in (tmp_path / "s" / "nodes").iterdir()] == ["0001"]


def test_two_writers_never_overwrite_each_other(tmp_path):
    first = Session.create(tmp_path / "s")
    second = Session.open(tmp_path / "s")
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_session as t\n"
        "s = t.Session.open(sys.argv[1])\n"
        "for n in range(12): t.add(s, f'other {n}')"
    )
    other = subprocess.Popen([sys.executable, "-c", program, tmp_path / "s", Path(__file__).parent])
    for number in range(6):
        add(first, f"first {number}")
        add(second, f"second {number}")
    assert other.wait(120) == 0
    nodes = Session.open(tmp_path / "s").nodes()
    assert len(nodes) == 24
    assert len({node.instruction for node in nodes}) == 24


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_session_killed_at_any_moment_stays_readable(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_session as t\n"
        "s = t.Session.open_or_create(sys.argv[1])\n"
        "for _ in range(12):  # a slow parent must not find hundreds\n"
        "    last = s.latest()\n"
        "    t.add(s, 'on', (t.picture(5, size=(300, 200)),), (t.half_mask((300, 200)),),\n"
        "          answer=t.picture(len(s.node_ids())), parents=(last.id,) if last else ())\n"
        "    print('kept one', flush=True)\n"
        "sys.stdin.read()\n"
    )
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "s", Path(__file__).parent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(0.05 + 0.15 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        session = Session.open(tmp_path / "s")
        nodes = session.nodes()
        assert len(nodes) >= seen
        seen = len(nodes)
        if nodes:
            turns = session.history(nodes[-1].id)
            assert len(turns) == len(nodes)
            for number, turn in enumerate(turns):
                np.testing.assert_array_equal(turn.answer, picture(number))
    assert seen > 0
    assert add(session, parents=(nodes[-1].id,)).id == f"{seen + 1:04d}"


def test_a_creation_that_was_cut_short_can_be_repeated(tmp_path):
    (tmp_path / "s" / "nodes").mkdir(parents=True)
    (tmp_path / "s" / ".session.json.0a1b.part").write_bytes(b"{")
    with pytest.raises(SessionError, match=r"no session\.json"):
        Session.open(tmp_path / "s")
    assert Session.open_or_create(tmp_path / "s").nodes() == ()
    assert Session.open_or_create(tmp_path / "s").nodes() == ()


# Folders of others


def test_a_session_is_never_made_over_other_files(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(SessionError, match="holds other files"):
        Session.create(tmp_path / "photos")
    Session.create(tmp_path / "s")
    with pytest.raises(SessionError, match="is a session already"):
        Session.create(tmp_path / "s")
    with pytest.raises(SessionError, match="no session folder"):
        Session.open(tmp_path / "gone")
    with pytest.raises(OutputError, match="cannot be made"):
        Session.create(tmp_path / "no" / "such" / "place")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        Session.create(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "ace-session", "format_version": 2}', "format 2, this ace reads 1: update it"),
        ("{", "damaged"),
        ('{"kind": "other", "format_version": 1}', "damaged"),
        ("[" * 100_000, "damaged"),
        (" " * 3_000_000, "far too large"),
    ],
)
def test_a_session_file_that_is_not_ours_is_refused(tmp_path, text, message):
    Session.create(tmp_path / "s")
    (tmp_path / "s" / "session.json").write_text(text)
    with pytest.raises(SessionError, match=message):
        Session.open(tmp_path / "s")


def damage_node_json(change):
    def damage(folder):
        entry = json.loads((folder / "node.json").read_text())
        change(entry)
        (folder / "node.json").write_text(json.dumps(entry))

    return damage


DAMAGES = {
    "no description": lambda folder: (folder / "node.json").unlink(),
    "half a description": lambda folder: (folder / "node.json").write_text("{"),
    "another version": damage_node_json(lambda entry: entry.update(format_version=9)),
    "another number": damage_node_json(lambda entry: entry.update(id="0004")),
    "an unknown field": damage_node_json(lambda entry: entry.update(command="rm")),
    "a path upwards": damage_node_json(lambda entry: entry["images"][0].update(file="../0001/image.png")),
    "an absolute path": damage_node_json(lambda entry: entry["image"].update(file="/etc/passwd")),
    "a reference outside": damage_node_json(lambda entry: entry.update(images=[{"node": "../0001"}])),
    "a reference to nothing": damage_node_json(lambda entry: entry.update(images=[{"node": "0009"}])),
    "an unknown parent": damage_node_json(lambda entry: entry.update(parents=["0009"])),
    "a circle": damage_node_json(lambda entry: entry.update(parents=["0002"])),
    "fewer masks": damage_node_json(lambda entry: entry.update(masks=[])),
    "no answer": lambda folder: (folder / "image.png").unlink(),
    "another answer": lambda folder: picture(55).save(folder / "image.png"),
    "a cut answer": lambda folder: (folder / "image.png").write_bytes((folder / "image.png").read_bytes()[:90]),
    "no input": lambda folder: (folder / "input0.png").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_node_is_one_clear_line_and_the_others_still_work(tmp_path, damage):
    session = Session.create(tmp_path / "s")
    add(session, answer=picture(1))
    add(session, images=(picture(7),), masks=(half_mask(),), parents=("0001",))
    damage(tmp_path / "s" / "nodes" / "0002")
    opened = Session.open(tmp_path / "s")
    with pytest.raises(SessionError, match=r"000[29]") as caught:
        opened.history("0002")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    np.testing.assert_array_equal(opened.history("0001")[0].answer, picture(1))
    assert add(opened, parents=("0001",)).id == "0003"


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize(
    "name", ["nodes/0001/image.png", "nodes/0001/node.json", "nodes/0001", "session.json", "nodes"]
)
def test_links_out_of_the_folder_are_not_followed(tmp_path, name):
    session = Session.create(tmp_path / "s")
    add(session)
    outside = tmp_path / "outside"
    (tmp_path / "s" / name).rename(outside)
    (tmp_path / "s" / name).symlink_to(outside)
    with pytest.raises(SessionError):
        Session.open(tmp_path / "s").history("0001")


@pytest.mark.parametrize("node_id", ["..", "../../etc", "1", "", "0001/../0001", ".new.abc", "0001\n", "٠٠٠١"])
def test_only_node_names_name_nodes(tmp_path, node_id):
    session = Session.create(tmp_path / "s")
    add(session)
    with pytest.raises(SessionError, match="use one such as 0001"):
        session.node(node_id)
    with pytest.raises(SessionError, match="use one such as 0001"):
        add(session, parents=(node_id,))


# Places, sources, latents


def test_the_place_in_the_tree_is_remembered_and_the_newest_is_the_first_one(tmp_path):
    session = Session.create(tmp_path / "s")
    assert session.head() is None
    add(session, "one")
    add(session, "two", parents=("0001",))
    assert session.head() == "0002"
    session.set_head("0001")
    assert Session.open(tmp_path / "s").head() == "0001"
    session.set_head(None)
    assert Session.open(tmp_path / "s").head() is None
    with pytest.raises(SessionError, match="no node 0009"):
        session.set_head("0009")
    (tmp_path / "s" / "head.json").write_text('{"node": "../../x"}')
    with pytest.raises(SessionError, match=r"head\.json of s is damaged"):
        session.head()


def test_the_edited_picture_keeps_its_alpha_and_profile_and_looks_the_same_to_a_model(tmp_path):
    session = Session.create(tmp_path / "s")
    given = picture(3, "RGBA")
    given.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    opened = normalise_image(given)
    add(session, "change it", (opened.image, picture(4)), source=opened)
    source = Session.open(tmp_path / "s").source("0001")
    np.testing.assert_array_equal(source.stored, opened.stored)
    np.testing.assert_array_equal(source.alpha, opened.alpha)
    assert source.icc_profile == opened.icc_profile
    (turn,) = Session.open(tmp_path / "s").history("0001")
    np.testing.assert_array_equal(turn.unit.images[0], opened.image)
    add(session, "go on", parents=("0001",))
    assert session.source("0002") is session.answer("0001")
    add(session, "from nothing")
    assert session.source("0003") is None


def test_kept_latents_come_back_only_for_the_model_that_made_them(tmp_path):
    session = Session.create(tmp_path / "s")
    latents = np.ones((4, 2, 3), np.float32)
    add(session, "one", latents=latents)
    assert session.history("0001")[0].latents is None
    assert session.history("0001", model_sha256="1" * 64)[0].latents is None
    np.testing.assert_array_equal(session.history("0001", model_sha256="0" * 64)[0].latents, latents)


# One file


def exported(session):
    stream = io.BytesIO()
    session.write_archive(stream)
    return stream


def tree(session):
    session.set_head(None)
    add(session, "one", (picture(5),), (half_mask(),), answer=picture(1), latents=np.ones((4, 2, 3), np.float32))
    add(session, "two", (session.answer("0001").image,), answer=picture(2), parents=("0001",))
    add(session, "other two", answer=picture(3), parents=("0001",))


def test_a_session_comes_back_from_its_file_as_it_was(tmp_path):
    session = Session.create(tmp_path / "s")
    tree(session)
    other = Session.create(tmp_path / "other")
    assert other.add_archive(exported(session)) == {"0001": "0001", "0002": "0002", "0003": "0003"}
    assert contents(tmp_path / "other" / "nodes") == contents(tmp_path / "s" / "nodes")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["nodes", "session.json"]


def test_nodes_of_a_file_are_added_behind_those_that_are_there(tmp_path):
    session = Session.create(tmp_path / "s")
    tree(session)
    other = Session.create(tmp_path / "other")
    add(other, "mine", answer=picture(9))
    assert other.add_archive(exported(session)) == {"0001": "0002", "0002": "0003", "0003": "0004"}
    reopened = Session.open(tmp_path / "other")
    assert [node.parents for node in reopened.nodes()] == [(), (), ("0002",), ("0002",)]
    assert [turn.unit.instruction for turn in reopened.history("0003")] == ["one", "two"]
    first, second = reopened.history("0003")
    assert second.unit.images[0] is first.answer
    np.testing.assert_array_equal(reopened.latents("0002"), 1)


def rewritten(stream, change):
    """The archive with its members changed: name → bytes, as `change` makes them of a dict."""
    with zipfile.ZipFile(stream) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out


def edited(name, old, new):
    def change(members):
        members[name] = members[name].replace(old, new)

    return change


HOSTILE = {
    "a path out of the folder": lambda m: m.update({"../../evil.png": b""}),
    "an absolute path": lambda m: m.update({"/tmp/evil": b""}),
    "a file that no node has": lambda m: m.update({"nodes/0001/extra.png": b""}),
    "a script": lambda m: m.update({"nodes/0001/run.sh": b""}),
    "no session.json": lambda m: m.pop("session.json"),
    "another format": edited("session.json", b'"format_version": 1', b'"format_version": 2'),
    "a node without its description": lambda m: m.pop("nodes/0002/node.json"),
    "a picture that is missing": lambda m: m.pop("nodes/0001/image.png"),
    "a picture that was changed": edited("nodes/0001/image.png", b"IDAT", b"IDAX"),
    "a parent that is not there": lambda m: [m.pop(name) for name in list(m) if name.startswith("nodes/0001/")],
    "a number that is not its folder's": edited("nodes/0002/node.json", b'"id": "0002"', b'"id": "0007"'),
    "a bomb": lambda m: m.update({"nodes/0002/node.json": b" " * 3_000_000}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_adds_nothing_and_leaves_nothing_behind(tmp_path, change):
    session = Session.create(tmp_path / "s")
    tree(session)
    hostile = rewritten(exported(session), change)
    other = Session.create(tmp_path / "other")
    before = contents(tmp_path)
    with pytest.raises(SessionError):
        other.add_archive(hostile, name="hostile.zip")
    assert contents(tmp_path) == before
    assert not any((tmp_path / "other" / "nodes").iterdir())


def test_what_is_no_archive_is_said_so(tmp_path):
    with pytest.raises(SessionError, match="not a ZIP file, or damaged"):
        Session.create(tmp_path / "s").add_archive(io.BytesIO(b"no archive"))
