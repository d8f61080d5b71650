"""The options of pictures and masks are checked in one place and survive a recipe."""

import pytest

from ace.conditions.rules import ImageRules, parse_pixels
from ace.errors import ConfigError


def test_only_what_differs_is_recorded_and_it_is_read_back():
    assert ImageRules().as_settings() == {}
    rules = ImageRules("transparent", 100, 10_000_000, 4, "0.1", 1.0, "model")
    assert rules.focus == 0.1
    assert rules.as_settings() == {
        "mask_means": "transparent",
        "mask_threshold": 100,
        "feather_px": 4,
        "focus": 0.1,
        "focus_margin": 1.0,
        "detail": "model",
    }
    again = ImageRules.of_settings({**rules.as_settings(), "tile_px": 512})
    assert again.as_settings() == rules.as_settings()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mask_means", "clear"),
        ("mask_threshold", 0),
        ("mask_threshold", 255),
        ("max_pixels", 0),
        ("max_pixels", 10**9),
        ("feather_px", -1),
        ("feather_px", 101),
        ("focus", "always"),
        ("focus", 1.5),
        ("focus", float("nan")),
        ("focus_margin", -0.5),
        ("detail", "best"),
    ],
)
def test_an_impossible_value_is_refused_with_the_options_name(option, value):
    name = option.removesuffix("_px").replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name}"):
        ImageRules(**{option: value})


def test_focus_is_off_automatic_or_a_share():
    assert ImageRules().focus_below == 0.25
    assert ImageRules(focus="off").focus_below == 0
    assert ImageRules(focus=0.5).focus_below == 0.5


@pytest.mark.parametrize(("text", "pixels"), [("64MP", 64_000_000), ("24.5m", 24_500_000), ("1000", 1000)])
def test_pixels_are_written_as_people_do(text, pixels):
    assert parse_pixels(text) == pixels
    with pytest.raises(ConfigError, match="--max-pixels"):
        parse_pixels("many")
