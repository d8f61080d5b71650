"""Wordings stay distinct and true to the pictures; a server may fail in every way and the run goes on."""

import random
import socket

import pytest
from PIL import Image

from ace.data.engine import DataJob, Record
from ace.data.instruct import Question, clean, paraphrase, read_instruction, why_not
from ace.data.label import FOREIGN, SILENT, SPENT, Endpoint, NoAnswer, label_pairs, reword
from ace.data.recipe import Collection, DataRecipe, Labelling, Mining, Synthesis
from ace.data.run import build, rework
from ace.data.shards import from_row, read_shards
from ace.data.sources import read_pictures
from ace.errors import ConditionError
from tests.data.endpoint import chat_server
from tests.data.pictures import collection
from tests.extract.photographs import needs

CHEAP = ("low_level_analysis/gray", "repainting/inpainting")


def settings(url, **others):
    """Of a server; wordings are compared as texts alone, so that no weights are needed."""
    return Labelling("endpoint", url, "a-model", **{"retries": 1, "max_alike": 1.0, "min_alike": -1.0, **others})


def number_the_wordings(body, number):
    return 200, f'"Rewording {number}: turn the colors of {{image}} off"'


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    pictures = collection(folder / "pictures", 4)
    build(DataRecipe(Collection(str(pictures)), synthesize=Synthesis(CHEAP[:1])), folder / "set")
    return folder / "set"


def test_phrase_classes_give_distinct_wordings_that_keep_names_and_quotes():
    first, known = 'remove the text "remove me" from the background of {image}', []
    dice = random.Random(1)
    for _ in range(10):
        text = paraphrase(first, known, dice)
        assert text is not None and "{image}" in text and '"remove me"' in text
        known.append(text)
    assert len({text.casefold() for text in [first, *known]}) == 11


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gray please, {image}", None),
        ("  ", "empty"),
        ("make it gray", "other pictures"),
        ("make {image} and {image1} gray", "other pictures"),
        ("Make {image} GRAY!", "repeats"),
        ("turn {image} gray.", "repeats"),
        ("x" * 500 + "{image}", "too long"),
    ],
)
def test_a_wording_is_judged(text, reason):
    found = why_not(text, "make {image} gray", ["turn {image} gray"])
    assert found is None if reason is None else reason in found


def test_answers_are_unwrapped():
    assert clean('1. "make it  blue"') == '1. "make it  blue"'.removeprefix("1. ").strip('"').replace("  ", " ")
    assert clean("New instruction: make\nit blue") == "make it blue"


def test_an_answer_about_a_pair_is_read_or_refused():
    answer = 'Sure! {"instruction": "make it night", "caption": "a town at night", "kind": "time_of_day"}'
    assert read_instruction(answer) == ("make it night, starting from {image}", "a town at night", "time_of_day")
    for wrong in ("no", '{"instruction": "x"}', '{"instruction": "a", "kind": "cooking"}'):
        with pytest.raises(ConditionError):
            read_instruction(wrong)


def test_a_server_gives_every_sample_distinct_wordings(data_set, tmp_path):
    with chat_server(number_the_wordings) as server:
        recipe = DataRecipe(Collection(str(data_set)), label=settings(server.url, rewrites=2))
        built = rework(recipe, tmp_path / "worded")
    samples = list(read_shards(tmp_path / "worded"))
    assert built.manifest.count == 12
    texts = [sample.request.current.instruction for sample in samples]
    assert len(set(texts[4:])) == 8 and all("{image}" in text for text in texts)
    written = [sample.provenance for sample in samples if sample.provenance.get("wording") == 2]
    assert len(written) == 4
    assert all(p["written_by"] == "a-model" and p["first_wording"] in texts[:4] for p in written)
    second = [body for body in server.bodies if body["messages"][0]["content"].count("\n-") > 1]
    assert len(second) == 4 and "Rewording" in second[0]["messages"][0]["content"]


def test_repeated_wordings_are_rejected_and_kept(data_set, tmp_path):
    with chat_server(lambda body, number: (200, "take the hue out of {image}")) as server:
        rework(DataRecipe(Collection(str(data_set)), label=settings(server.url, rewrites=3)), tmp_path / "worded")
    dropped = read_shards(tmp_path / "worded" / "rejected")
    assert set(dropped.column("reason")) == {"the wording repeats an earlier one"}
    assert len(dropped) == 8
    assert "hue" in from_row(dropped.row(0)).request.current.instruction


@needs("minilm", "minilm-tokenizer")
def test_wordings_that_mean_something_else_or_hardly_differ_are_rejected(data_set, tmp_path):
    row = read_shards(data_set).row(0) | {"instruction": "Remove the red car on the left from {image}."}
    answers = (
        "Make {image} look like a watercolour",
        "Remove the red car on the left of {image}",
        "Take it out of {image}, the red car at the left",
    )
    with chat_server(lambda body, number: (200, answers[number - 1])) as server:
        compared = settings(server.url, rewrites=3, max_alike=0.94, min_alike=0.4)
        made = list(reword([Record(row["id"], sample=row)], compared, Endpoint(compared, tmp_path / "a.jsonl")))
    reasons = [record.reason for record in made]
    assert reasons == ["", "the wording means something else", "the wording is too much like an earlier one", ""]


def test_a_dead_endpoint_rejects_and_the_run_goes_on(data_set, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"  # bound, but nobody listens
        built = rework(DataRecipe(Collection(str(data_set)), label=settings(url, retries=0)), tmp_path / "worded")
    assert built.manifest.count == 4  # the first wordings
    assert read_shards(tmp_path / "worded" / "rejected").column("reason") == [SILENT] * 4


def test_a_server_that_stumbles_is_asked_again(tmp_path):
    def stumbling(body, number):
        return (503, "") if number == 1 else (429, "") if number == 2 else (200, "well")

    with chat_server(stumbling) as server:
        who = Endpoint(settings(server.url, retries=3), tmp_path / "replies" / "a.jsonl")
        assert who.ask([Question("how?")]) == ["well"]
        assert len(server.bodies) == 3


def test_a_server_that_stumbles_on_and_on_is_left_alone(tmp_path):
    with chat_server(lambda body, number: (500, "")) as server:
        who = Endpoint(settings(server.url, retries=1, parallel=1), tmp_path / "a.jsonl")
        answers = who.ask([Question(f"number {n}") for n in range(6)])
        assert [answer.reason for answer in answers] == [SILENT] * 6
        assert len(server.bodies) == 6, "three questions, each asked twice"


@pytest.mark.parametrize("said", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": null}', b"[" * 100_000])
def test_a_server_that_speaks_something_else_is_said_to(tmp_path, said):
    with chat_server(lambda body, number: (200, said)) as server:
        (answer,) = Endpoint(settings(server.url), tmp_path / "a.jsonl").ask([Question("how?")])
        assert answer.reason == FOREIGN


def test_a_redirect_is_not_followed(tmp_path):
    with chat_server(lambda body, number: (302, "elsewhere")) as server:
        (answer,) = Endpoint(settings(server.url), tmp_path / "a.jsonl").ask([Question("how?")])
        assert isinstance(answer, NoAnswer) and "302" in answer.detail
        assert len(server.bodies) == 1


def test_a_refusal_is_final(tmp_path):
    with chat_server(lambda body, number: (401, "")) as server:
        (answer,) = Endpoint(settings(server.url), tmp_path / "a.jsonl").ask([Question("how?")])
        assert isinstance(answer, NoAnswer) and "401" in answer.detail
        assert len(server.bodies) == 1


def test_what_was_answered_is_not_asked_again_and_the_budget_holds(tmp_path):
    questions = [Question(f"number {n}") for n in range(6)]
    with chat_server(lambda body, number: (200, body["messages"][0]["content"])) as server:
        limited = settings(server.url, budget_tokens=30, parallel=1)
        answers = Endpoint(limited, tmp_path / "a.jsonl").ask(questions)
        assert answers[:3] == [question.text for question in questions[:3]]
        assert all(isinstance(answer, NoAnswer) and answer.reason == SPENT for answer in answers[3:])
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write('{"question": "half')  # a kill
        again = Endpoint(settings(server.url, parallel=1), tmp_path / "a.jsonl").ask(questions)
        assert again == [question.text for question in questions]
        assert len(server.bodies) == 6


def test_pairs_are_looked_at_and_then_put_into_words(tmp_path):
    pictures = collection(tmp_path / "pictures", 2)
    recipe = DataRecipe(Collection(str(pictures)), mine=Mining(), label=Labelling("local", model="none", pairs=True))
    records = list(read_pictures(recipe, DataJob("0", {"pictures": [{"file": "000.png"}, {"file": "001.png"}]})))
    pair = {"first": records[0].facts, "second": records[1].facts, "cosine": 0.8}

    def look_then_write(body, number):
        content = body["messages"][0]["content"]
        if isinstance(content, str):
            assert "the disc moved" in content
            return 200, '{"instruction": "move the disc of {image}", "caption": "a disc", "kind": "camera"}'
        assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
        return 200, "common: a ramp; different: the disc moved"

    with chat_server(look_then_write) as server:
        who = Endpoint(settings(server.url), tmp_path / "a.jsonl")
        (record,) = label_pairs(recipe, [pair], who)
    assert record.reason == "" and record.sample is not None
    sample = from_row(record.sample)
    assert sample.task == "semantic_editing/camera"
    with Image.open(pictures / "001.png") as second:
        assert sample.target.tobytes() == second.tobytes()


def test_nothing_to_word_asks_nothing(tmp_path):
    who = Endpoint(settings("http://127.0.0.1:9/v1"), tmp_path / "a.jsonl")
    assert list(reword([], Labelling(), who)) == []
