"""The puppet: a jointed person with known joints, for pose pictures.

Joints are the 17 COCO keypoints, in fractions of the puppet's own square. Drawn with capsules and discs at twice the
size and reduced. Left and right are the viewer's throughout (what is said of a picture), also in the joint names.
Not here: the skeleton drawing (`ace.extract.pose`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, radians, sin

import numpy as np
from PIL import Image, ImageDraw

from ace.data.world.backgrounds import COLORS

SHIRTS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "pink")
TROUSERS = ("black", "blue", "brown", "gray", "green", "red")
SKINS: dict[str, tuple[int, int, int]] = {"light": (248, 208, 172), "medium": (206, 150, 104), "dark": (122, 78, 50)}
HAIRS: dict[str, tuple[int, int, int]] = {
    "black": (36, 30, 30),
    "brown": (112, 68, 36),
    "blond": (238, 200, 96),
    "red": (196, 84, 36),
}


# name -> angles in degrees (0 = straight down, positive = towards the viewer's right):
# (upper arm L, forearm L, upper arm R, forearm R, thigh L, shin L, thigh R, shin R)
POSES: dict[str, tuple[int, int, int, int, int, int, int, int]] = {
    "standing with the arms down": (-14, -8, 14, 8, -7, -4, 7, 4),
    "with both arms up": (-150, -172, 150, 172, -7, -4, 7, 4),
    "with the arms spread out": (-90, -90, 90, 90, -7, -4, 7, 4),
    "with the left arm up": (-150, -172, 14, 8, -7, -4, 7, 4),
    "with the right arm up": (-14, -8, 150, 172, -7, -4, 7, 4),
    "with the hands on the hips": (-52, 38, 52, -38, -7, -4, 7, 4),
    "doing a star jump": (-135, -135, 135, 135, -36, -36, 36, 36),
    "kicking to the left": (-60, -60, 60, 60, -78, -78, 6, 2),
    "kicking to the right": (-60, -60, 60, 60, -6, -2, 78, 78),
    "running to the right": (-48, 30, 48, 120, -30, -85, 58, -4),
    "running to the left": (-48, -120, 48, -30, -58, 4, 30, 85),
    "with the legs apart": (-14, -8, 14, 8, -28, -28, 28, 28),
    "flexing both arms": (-88, -178, 88, 178, -7, -4, 7, 4),
    "pointing to the left": (-90, -90, 14, 8, -7, -4, 7, 4),
    "pointing to the right": (-14, -8, 90, 90, -7, -4, 7, 4),
}
# what to say to get there
POSE_REQUESTS: dict[str, tuple[str, ...]] = {
    "standing with the arms down": ("lower the arms", "stand still with the arms down"),
    "with both arms up": ("raise both arms", "put both hands up"),
    "with the arms spread out": ("spread the arms out", "hold both arms out to the sides"),
    "with the left arm up": ("raise the left arm only", "put only the left hand up"),
    "with the right arm up": ("raise the right arm only", "put only the right hand up"),
    "with the hands on the hips": ("put the hands on the hips", "rest both hands on the hips"),
    "doing a star jump": ("do a star jump", "jump like a star"),
    "kicking to the left": ("kick to the left", "lift a leg to the left"),
    "kicking to the right": ("kick to the right", "lift a leg to the right"),
    "running to the right": ("run to the right", "start running towards the right"),
    "running to the left": ("run to the left", "start running towards the left"),
    "with the legs apart": ("stand with the legs apart", "spread the legs, arms down"),
    "flexing both arms": ("flex both arms", "show the muscles of both arms"),
    "pointing to the left": ("point to the left", "point towards the left side"),
    "pointing to the right": ("point to the right", "point towards the right side"),
}

# COCO order; "left" = the viewer's left
KEYPOINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder",
    "left elbow", "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee",
    "left ankle", "right ankle",
)  # fmt: skip


@dataclass(frozen=True)
class Puppet:
    """Looks and pose: names from `SHIRTS`, `TROUSERS`, `SKINS`, `HAIRS`, `POSES`."""

    shirt: str
    trousers: str
    skin: str
    hair: str
    pose: str

    @property
    def words(self) -> str:
        """What is worn, as a noun phrase."""
        return f"a person in a {self.shirt} shirt and {self.trousers} trousers"

    @property
    def all_words(self) -> str:
        """All that can be seen but the pose, as a noun phrase."""
        worn = f"a {self.shirt} shirt and {self.trousers} trousers"
        return f"a person with {self.hair} hair and {self.skin} skin in {worn}"


def keypoints(puppet: Puppet) -> np.ndarray:
    """(17, 2) float32: x, y of the COCO keypoints in fractions of the puppet's square."""
    ul, fl, ur, fr, tl, sl, tr, sr = POSES[puppet.pose]

    def along(start: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
        return start[0] + length * sin(radians(angle)), start[1] + length * cos(radians(angle))

    shoulder_l, shoulder_r, hip_l, hip_r = (0.41, 0.33), (0.59, 0.33), (0.445, 0.56), (0.555, 0.56)
    elbow_l, elbow_r = along(shoulder_l, ul, 0.15), along(shoulder_r, ur, 0.15)
    wrist_l, wrist_r = along(elbow_l, fl, 0.14), along(elbow_r, fr, 0.14)
    knee_l, knee_r = along(hip_l, tl, 0.2), along(hip_r, tr, 0.2)
    ankle_l, ankle_r = along(knee_l, sl, 0.19), along(knee_r, sr, 0.19)
    head = ((0.5, 0.2), (0.465, 0.175), (0.535, 0.175), (0.42, 0.19), (0.58, 0.19))
    points = (
        *head,
        shoulder_l,
        shoulder_r,
        elbow_l,
        elbow_r,
        wrist_l,
        wrist_r,
        hip_l,
        hip_r,
        knee_l,
        knee_r,
        ankle_l,
        ankle_r,
    )
    return np.array(points, np.float32)


_SAMPLES = 2  # in each direction, of a pixel


@lru_cache(maxsize=2000)
def draw_puppet(puppet: Puppet, size_px: int) -> np.ndarray:
    """(size_px, size_px, 4) uint8 RGBA, straight alpha, read-only."""
    n = size_px * _SAMPLES
    points = keypoints(puppet) * n
    canvas = Image.new("RGBA", (n, n), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    skin, hair = SKINS[puppet.skin], HAIRS[puppet.hair]
    shirt, trousers = COLORS[puppet.shirt], COLORS[puppet.trousers]

    def disc(at: np.ndarray, radius: float, color: tuple[int, int, int]) -> None:
        x, y, r = float(at[0]), float(at[1]), radius * n
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def capsule(a: np.ndarray, b: np.ndarray, width: float, color: tuple[int, int, int]) -> None:
        pen.line((*map(float, a), *map(float, b)), fill=color, width=round(width * n))
        disc(a, width / 2, color)
        disc(b, width / 2, color)

    for hip, knee, ankle in ((11, 13, 15), (12, 14, 16)):
        capsule(points[hip], points[knee], 0.095, trousers)
        capsule(points[knee], points[ankle], 0.085, trousers)
        disc(points[ankle], 0.05, (60, 44, 40))
    shoulders, hips = points[5:7], points[11:13]
    pen.polygon([tuple(map(float, p)) for p in (shoulders[0], shoulders[1], hips[1], hips[0])], fill=shirt)
    capsule(shoulders[0], shoulders[1], 0.09, shirt)
    capsule(shoulders[0], hips[0], 0.09, shirt)
    capsule(shoulders[1], hips[1], 0.09, shirt)
    neck = shoulders.mean(0)
    for shoulder, elbow, wrist in ((5, 7, 9), (6, 8, 10)):
        capsule(points[shoulder], points[elbow], 0.08, shirt)
        capsule(points[elbow], points[wrist], 0.065, skin)
        disc(points[wrist], 0.042, skin)
    capsule(neck, points[0], 0.07, skin)
    disc(points[0] - (0, 0.025 * n), 0.118, hair)
    disc(points[0], 0.105, skin)
    box = (points[0][0] - 0.112 * n, points[0][1] - 0.135 * n, points[0][0] + 0.112 * n, points[0][1] + 0.06 * n)
    pen.pieslice(tuple(map(float, box)), 190, 350, fill=hair)
    for eye in (1, 2):
        disc(points[eye] + (0, 0.035 * n), 0.016, (30, 26, 30))
    mouth = (points[0][0] - 0.04 * n, points[0][1], points[0][0] + 0.04 * n, points[0][1] + 0.065 * n)
    pen.arc(tuple(map(float, mouth)), 20, 160, fill=(150, 40, 40), width=max(1, round(0.014 * n)))
    array = np.array(canvas.resize((size_px, size_px), Image.Resampling.BOX))
    array.setflags(write=False)
    return array
