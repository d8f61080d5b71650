"""A tiny vision-language model, randomly initialised, learns twenty instructions and serves them."""

import socket
import threading
import time

import pytest
import uvicorn

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.data.instruct import Question
from ace.data.label import Endpoint, NoAnswer
from ace.data.label_captioner import (
    ASK,
    Captioner,
    CaptionerRecipe,
    captioner_app,
    curated_rows,
    load_captioner,
    train_captioner,
)
from ace.data.recipe import Labelling
from ace.data.sample import EditSample
from ace.errors import DataError, MissingDependencyError
from tests.data.pictures import draw

COLOURS, THINGS = ("red", "blue", "green", "black"), ("house", "tree", "road", "cat", "sky")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}"
    "{% else %}answer: {% for c in m.content %}{{ c.text }}{% endfor %} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}answer: {% endif %}"
)


def samples():
    made = []
    for number, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS):
        unit = ConditionUnit(f"make the {thing} of {{image}} {colour}", (draw(2 * number, (64, 64)),))
        target = draw(2 * number + 1, (64, 64))
        made.append(EditSample(LongContextConditionUnit(unit), target, "semantic_editing/background"))
    return made


def save_tiny_model(folder, texts):
    """A Llava of about 0.2 M parameters with a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, num_hidden_layers=1, image_size=32, patch_size=16),
        text_config=LlamaConfig(**size, num_hidden_layers=2, vocab_size=len(vocabulary), initializer_range=0.2, **ends),
        image_token_index=4,
        image_seq_length=5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**ends)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    rows = samples()
    save_tiny_model(folder / "base", [*(row.request.current.instruction for row in rows), ASK, "answer:"])
    told = []
    recipe = CaptionerRecipe(str(folder / "base"), steps=120, batch=10, rate=1.5e-2, rank=16)
    loss = train_captioner(rows, recipe, folder / "trained", lambda *what: told.append(what))
    assert told[-1] == (120, 120)
    assert loss < 0.2
    return load_captioner(str(folder / "trained"), max_new_tokens=12)


def test_it_reproduces_the_twenty_rows_it_learnt(captioner):
    for row in samples():
        assert captioner.write(row.request.current.images[0], row.target) == row.request.current.instruction


def test_several_answers_of_one_pass_are_those_of_one_each(captioner):
    together = Captioner(captioner.model, captioner.processor, 12, at_once=4)
    rows = samples()[:6]
    questions = [Question(ASK, (row.request.current.images[0], row.target)) for row in rows]
    questions.insert(2, Question(ASK, (draw(99, (64, 64)),)))  # a shorter one
    assert together.answer_all(questions) == [captioner.answer(question) for question in questions]


def test_a_cluster_gets_an_instruction_for_every_ordered_pair(captioner):
    pictures = [draw(n, (64, 64)) for n in range(3)]
    written = captioner.write_cluster(pictures)
    assert set(written) == {(i, j) for i in range(3) for j in range(3) if i != j}
    assert written[0, 1] == samples()[0].request.current.instruction


def test_it_answers_over_http_as_it_does_here(captioner, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(captioner_app(captioner), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        settings = Labelling("endpoint", f"http://127.0.0.1:{port}/v1", "captioner", parallel=2, retries=0)
        who = Endpoint(settings, tmp_path / "replies.jsonl")
        rows = samples()[:4]
        questions = [Question(ASK, (row.request.current.images[0], row.target)) for row in rows]
        assert who.ask(questions) == [row.request.current.instruction for row in rows]
        import httpx2

        refused = httpx2.post(f"{settings.endpoint}/chat/completions", json={"messages": []}, trust_env=False)
        assert refused.status_code == 400
    finally:
        server.should_exit = True
        thread.join()
    assert isinstance(Endpoint(settings, tmp_path / "other.jsonl").ask(questions[:1])[0], NoAnswer)


def test_rows_without_one_input_picture_are_not_learnt_from():
    alone = EditSample(
        LongContextConditionUnit(ConditionUnit("a cat")), draw(0), "text_guided_generation/text_to_image"
    )
    fit = samples()[:2]
    assert [row.target for row in curated_rows([alone, *fit])] == [row.target for row in fit]
    with pytest.raises(DataError, match="exactly one input"):
        curated_rows([alone])


def test_a_base_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingDependencyError, match="cannot be loaded"):
        load_captioner(str(tmp_path / "nothing"))
