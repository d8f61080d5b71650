"""The Instruction Captioner: an open vision-language model fine-tuned with LoRA to say what leads from one picture to
another (section 3.2), then used on pairs and whole clusters, here or over HTTP.

Any image-text-to-text model of transformers whose processor has a chat template and takes two pictures will do; the
paper's is InternVL2-26B. What is saved is the adapter and the processor, with the name of the base model.

Not here: several devices (use a training launcher for real sizes), which rows are good (`review.py`).
"""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from ace.data.instruct import Question
from ace.data.sample import EditSample
from ace.errors import ConfigError, DataError, MissingDependencyError
from ace.files import write_atomically

ASK = "Write the instruction that turns the first picture into the second."
NOTE = "captioner.json"


@dataclass(frozen=True)
class CaptionerRecipe:
    """How a captioner is trained. model: folder or name of the base; rate: of AdamW; rank: of the adapter."""

    model: str
    steps: int = 1000
    batch: int = 4
    rate: float = 1e-4
    rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.rank) < 1 or self.rate <= 0:
            raise ConfigError("captioner: steps, batch, rank and rate must be positive")


class Captioner:
    """A model that sees and its processor, ready to answer. Greedy: the same pictures give the same words."""

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 80, at_once: int = 0):
        """at_once: questions of one pass, 0 = eight on a GPU, else one."""
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.at_once = at_once or (1 if model.device.type == "cpu" else 8)

    def write(self, first: Image.Image, second: Image.Image) -> str:
        """The instruction that turns `first` into `second`."""
        return self.answer(Question(ASK, (first, second)))

    def write_cluster(self, pictures: Sequence[Image.Image]) -> dict[tuple[int, int], str]:
        """The instruction of every ordered pair of a set."""
        pairs = list(permutations(range(len(pictures)), 2))
        written = self.answer_all([Question(ASK, (pictures[i], pictures[j])) for i, j in pairs])
        return dict(zip(pairs, written, strict=True))

    def answer(self, question: Question) -> str:
        """The answer to any question."""
        return self.answer_all([question])[0]

    def answer_all(self, questions: Sequence[Question]) -> list[str]:
        """The answers, in order, several in one pass."""
        slices = [questions[i : i + self.at_once] for i in range(0, len(questions), self.at_once)]
        return [answer for part in slices for answer in self._pass(part)]

    @torch.inference_mode()
    def _pass(self, questions: Sequence[Question]) -> list[str]:
        inputs = _encode(self.processor, questions).to(self.model.device)
        made = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        told = self.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in told]


def curated_rows(samples: Sequence[EditSample]) -> list[EditSample]:
    """The samples a captioner learns from: one input picture, no history. Raises DataError if there are none."""
    rows = [s for s in samples if len(s.request.current.images) == 1 and not s.request.history]
    if not rows:
        raise DataError("no sample has exactly one input picture: a captioner has nothing to learn from")
    return rows


def train_captioner(
    samples: Sequence[EditSample],
    recipe: CaptionerRecipe,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> float:
    """Fit an adapter to curated samples and save it in a folder; returns the mean loss of the last tenth of the steps.

    Raises MissingDependencyError for a base model that is not at hand, DataError without fit samples."""
    from peft import LoraConfig, get_peft_model

    rows = curated_rows(samples)
    torch.manual_seed(recipe.seed)
    base, processor = _load_base(recipe.model)
    linear = [
        name for name, part in base.named_modules() if isinstance(part, torch.nn.Linear) and "lm_head" not in name
    ]
    config = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=linear, task_type="CAUSAL_LM")
    with _without_deprecations():
        model: Any = get_peft_model(base, config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps)
    losses = []
    order = _endless(len(rows), Random(recipe.seed))
    for step in range(recipe.steps):
        for _ in range(recipe.batch):  # one row at a time: rows differ in length, and memory is short
            sample = rows[next(order)]
            asked = Question(ASK, (sample.request.current.images[0], sample.target))
            inputs = _encode_lesson(processor, asked, sample.request.current.instruction).to(model.device)
            loss = model(**inputs).loss / recipe.batch
            loss.backward()
            losses.append(float(loss.detach()) * recipe.batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if on_progress:
            on_progress(step + 1, recipe.steps)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_atomically(folder / NOTE, (json.dumps(asdict(recipe), indent=1) + "\n").encode())
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def load_captioner(name: str, max_new_tokens: int = 80) -> Captioner:
    """A captioner from its folder, or any model of transformers that sees, by folder or name."""
    note = Path(name) / NOTE
    if not note.is_file():
        return Captioner(*_load_base(name), max_new_tokens)
    from peft import PeftModel
    from transformers import AutoProcessor

    base, _ = _load_base(json.loads(note.read_text(encoding="utf-8"))["model"])
    with _without_deprecations():
        model = PeftModel.from_pretrained(base, name)
    return Captioner(model, AutoProcessor.from_pretrained(name), max_new_tokens)


def captioner_app(captioner: Captioner) -> Any:
    """The captioner as an OpenAI-compatible server (`POST /v1/chat/completions`), for labelling from elsewhere."""
    from threading import Lock

    from fastapi import Body, FastAPI, HTTPException

    app = FastAPI(title="Instruction Captioner")
    lock = Lock()

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 (FastAPI's way)
        try:
            question = _question(body["messages"][-1]["content"])
        except (KeyError, IndexError, TypeError, ValueError, UnidentifiedImageError, OSError):
            raise HTTPException(400, "messages must end with a text and data URLs of pictures") from None
        with lock:
            text = captioner.answer(question)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"object": "chat.completion", "model": str(body.get("model", "")), "choices": [choice]}

    return app


def _question(content: Any) -> Question:
    if isinstance(content, str):
        return Question(content)
    pictures = []
    for part in content:
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(",")
            if not head.startswith("data:image/"):
                raise ValueError("only data URLs")
            pictures.append(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"))
    return Question(" ".join(part["text"] for part in content if part["type"] == "text"), tuple(pictures))


_AS_TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


def _asked(question: Question) -> dict[str, Any]:
    """A question as a turn of a chat."""
    shown = [{"type": "image", "image": picture.convert("RGB")} for picture in question.pictures]
    return {"role": "user", "content": [*shown, {"type": "text", "text": question.text}]}


def _encode(processor: Any, questions: Sequence[Question]) -> Any:
    """Questions as the model's input; shorter ones are filled up on the left, so that all answers begin together."""
    chats = [[_asked(question)] for question in questions]
    padded = {} if len(chats) == 1 else {"padding": True, "padding_side": "left"}
    return processor.apply_chat_template(chats, add_generation_prompt=True, **_AS_TENSORS, **padded)


def _encode_lesson(processor: Any, question: Question, answer: str) -> Any:
    """A question and its answer as the model's input, with labels: −100 where nothing is to be learnt."""
    prompt = processor.apply_chat_template([_asked(question)], add_generation_prompt=True, **_AS_TENSORS)
    told = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    whole = processor.apply_chat_template([_asked(question), told], **_AS_TENSORS)
    labels = whole["input_ids"].clone()
    labels[:, : prompt["input_ids"].shape[1]] = -100
    whole["labels"] = labels
    return whole


def _load_base(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        model.to(device)  # pyright: ignore[reportArgumentType]  (transformers' wrapper hides the signature)
        return model, AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise MissingDependencyError(
            f"the model {name} cannot be loaded ({str(error).splitlines()[0]}): name a folder with its files, or go "
            "online once"
        ) from None


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """PEFT 0.21 asks transformers for a property that it is about to rename."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def _endless(count: int, rng: Random) -> Iterator[int]:
    while True:
        yield from rng.sample(range(count), count)
