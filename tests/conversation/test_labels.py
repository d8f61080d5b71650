"""Names that people give, and deleting: what was made from a deleted node stays whole, and no number is used twice."""

import io

import numpy as np
import pytest
from PIL import Image

from ace.conditions.units import ConditionUnit
from ace.conversation.recipe import CURRENT_RULES, Environment, Recipe
from ace.conversation.session import Session
from ace.errors import SessionError


def recipe(instruction: str) -> Recipe:
    return Recipe(
        instruction=instruction,
        seed=1,
        num_inference_steps=2,
        guidance_scale=1.0,
        guidance_rescale=0.0,
        environment=Environment.here(),
        size_px=(8, 8),
        model="m",
        model_sha256="0" * 64,
        rules=dict(CURRENT_RULES),
    )


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, value, value))


def add(session: Session, value: int, parent: str | None = None) -> str:
    images = () if parent is None else (session.answer(parent).image,)
    unit = ConditionUnit(f"make it {value}", images)
    parents = () if parent is None else (parent,)
    return session.add_node(unit, picture(value), recipe(unit.instruction), parents=parents).id


@pytest.fixture
def session(tmp_path) -> Session:
    found = Session.create(tmp_path / "talk")
    first = add(found, 10)
    second = add(found, 20, first)
    add(found, 30, second)
    return found


def test_what_was_made_from_a_deleted_node_stays_whole(session):
    session.delete_node("0002")
    assert session.shown_ids() == ("0001", "0003")
    assert session.shown_parent("0003") == "0001"
    again = Session.open(session.folder)
    turns = again.history("0003")
    assert [turn.unit.instruction for turn in turns] == ["make it 10", "make it 20", "make it 30"]
    assert np.asarray(again.unit("0003").images[0])[0, 0, 0] == 20
    session.delete_node("0003")  # the last that needed it: the files of both go
    assert session.node_ids() == ("0001",) and session.head() == "0001"
    assert sorted(entry.name for entry in (session.folder / "nodes").iterdir()) == ["0001"]


def test_a_number_is_never_used_again(session):
    session.delete_node("0003")
    session.delete_node("0002")
    assert add(session, 40, "0001") == "0004"
    for node_id in ("0004", "0001"):
        session.delete_node(node_id)
    assert session.node_ids() == () and session.head() is None and session.latest() is None
    assert add(Session.open(session.folder), 50) == "0005"


def test_whoever_was_at_a_deleted_node_goes_to_its_parent(session):
    session.set_head("0003")
    session.delete_node("0003")
    assert session.head() == "0002"
    session.set_head("0001")
    session.delete_node("0001")
    assert session.head() is None
    assert session.shown_parent("0002") is None


def test_files_can_be_kept_while_something_is_made_from_them(session):
    session.delete_node("0003", keep_files=True)
    assert session.shown_ids() == ("0001", "0002") and "0003" in session.node_ids()
    assert add(session, 40, "0003") == "0004"  # a request that was on its way
    assert session.shown_parent("0004") == "0002"


def test_names_are_kept_and_travel_with_the_archive(session, tmp_path):
    session.rename("Holiday\n2026")
    session.rename_node("0001", "the first")
    session.delete_node("0002")
    stream = io.BytesIO()
    session.write_archive(stream)
    other = Session.create(tmp_path / "other")
    add(other, 90)
    numbers = other.add_archive(io.BytesIO(stream.getvalue()))
    assert session.labels().name == "Holiday 2026"
    assert other.labels().titles == {numbers["0001"]: "the first"}
    assert numbers["0002"] not in other.shown_ids() and numbers["0003"] in other.shown_ids()
    session.rename_node("0001", "")
    assert session.labels().titles == {}


def test_damaged_labels_and_unknown_nodes_are_said(session):
    with pytest.raises(SessionError, match="has no node 0009"):
        session.delete_node("0009")
    with pytest.raises(SessionError, match="has no node 0009"):
        session.rename_node("0009", "x")
    with pytest.raises(SessionError, match="a name of 201 characters"):
        session.rename("x" * 201)
    (session.folder / "labels.json").write_text('{"last": "nine"}')
    with pytest.raises(SessionError, match=r"labels\.json of talk is damaged"):
        session.shown_ids()
