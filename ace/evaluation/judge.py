"""A vision-language model as judge: did the change follow the instruction, and nothing else change? 1 or 0.

Any endpoint of the OpenAI chat API, asked several times at temperature 0 (endpoints differ in how far that makes them
repeatable, so the spread is kept). A reply without a 0 or 1 counts as 0 and is reported. Another judge, or other words,
make another metric: print the judge's name beside the number. The wording is ours and follows the four cases of
ICE-Bench's own question (with or without mask, with or without reference), in English or, as there, in Chinese.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from ace.conditions.images import open_image
from ace.data.endpoint import connect
from ace.errors import ConfigError, DataError

LARGEST_SIDE_PX = 1024


@dataclass(frozen=True)
class Verdict:
    """score: mean over the repeats, 0 to 1. num_unclear: replies without a 0 or 1."""

    score: float
    num_unclear: int


@dataclass
class Judge:
    """base_url, model, api_key: of the endpoint. repeats: times each question is asked. language: "en" or "zh".

    It keeps connections: leave its `with` block, or `close` it, when nothing more is asked."""

    base_url: str
    model: str
    api_key: str = ""
    repeats: int = 3
    timeout_s: float = 120.0
    language: str = "en"

    def __post_init__(self) -> None:
        if self.language not in ("en", "zh"):
            raise ConfigError(f"the judge's question is in en or zh, not {self.language!r}")
        self._client = connect(self.base_url, self.api_key, self.timeout_s)

    def close(self) -> None:
        """Close the connections to the endpoint."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def ask(
        self, instruction: str, source: Path, result: Path, mask: Path | None = None, reference: Path | None = None
    ) -> Verdict:
        """Did the result follow the instruction, and nothing else change? Raises DataError if the endpoint fails."""
        pictures = [path for path in (source, result, mask, reference) if path is not None]
        content: list = [{"type": "image_url", "image_url": {"url": _data_url(path)}} for path in pictures]
        ask = question if self.language == "en" else question_in_chinese
        content.append({"type": "text", "text": ask(instruction, mask is not None, reference is not None)})
        replies = [re.search(r"[01]", self._reply(content)) for _ in range(self.repeats)]
        score = sum(found is not None and found[0] == "1" for found in replies) / self.repeats
        return Verdict(score, sum(found is None for found in replies))

    def _reply(self, content: list) -> str:
        from openai import OpenAIError

        try:
            reply = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=512
            )
        except OpenAIError as error:
            raise DataError(f"the judge at {self.base_url}: {error}; what it said so far is kept") from error
        return reply.choices[0].message.content or ""


def question(instruction: str, has_mask: bool, has_reference: bool) -> str:
    """What is asked, pictures being given in the order source, result, mask, reference."""
    told = ["The first picture is the source, the second is an edited version of it."]
    if has_mask:
        told.append("The third picture is a mask: only its white area may change.")
    if has_reference:
        order = "fourth" if has_mask else "third"
        told.append(f"The {order} picture is a reference that the instruction speaks of.")
    told.append(f"The instruction was: {instruction}")
    told.append("Answer 1 if the change agrees with the instruction, otherwise 0.")
    if has_mask:
        told.append("Also answer 0 if anything outside the mask changed.")
    elif not has_reference:
        told.append("Also answer 0 if anything else changed.")
    return " ".join([*told, "Answer with that one digit only."])


def question_in_chinese(instruction: str, has_mask: bool, has_reference: bool) -> str:
    """`question` in Chinese."""
    told = ["第一张图片是原图,第二张图片是对原图编辑后的结果。"]
    if has_mask:
        told.append("第三张图片是掩码:只允许修改其中的白色区域。")
    if has_reference:
        told.append(f"第{'四' if has_mask else '三'}张图片是指令中提到的参考图。")
    told.append(f"编辑指令是:{instruction}。如果修改符合指令,请回答1,否则回答0。")
    if has_mask:
        told.append("如果掩码以外的区域发生了变化,也回答0。")
    elif not has_reference:
        told.append("如果其他部分也发生了变化,也回答0。")
    return "".join([*told, "只回答这一个数字,不要解释。"])


def _data_url(path: Path) -> str:
    picture = open_image(path).image
    picture.thumbnail((LARGEST_SIDE_PX, LARGEST_SIDE_PX), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
