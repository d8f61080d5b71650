"""Pictures per second and core of every extractor, at 512x512 px, one thread.

python benchmarks/bench_extract.py [NAME ...]

CPU time is counted, not the clock, so a busy machine changes little. Extractors whose weights are missing are named
and left out; `ace data setup` fetches them. The photograph is NASA's, from scikit-image.
"""

import os
import platform
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from skimage import data

from ace.errors import MissingDependencyError
from ace.extract import exact

REPEATS = 3
MASK = np.zeros((512, 512), bool)
MASK[180:330, 160:320] = True


def sam2():
    from ace.extract.objects import Segmenter

    segmenter = Segmenter()

    def find(image):
        segmenter._key = None  # encode again
        return segmenter.find_objects(image)

    return find


def hed():
    from ace.extract.hed import SoftEdges

    return SoftEdges()


def fastdepth():
    from ace.extract.distance import FastDepth

    return FastDepth()


def blazepose():
    from ace.extract.people import PoseFinder

    return PoseFinder().find


def mtcnn():
    from ace.extract.faces import FaceFinder

    return FaceFinder().find


def face_mesh():
    from ace.extract.faces import FaceFinder, FaceMesh

    face, mesh = FaceFinder().find(data.astronaut())[0], FaceMesh()
    return lambda image: mesh.points(image, face)


def names():
    from ace.extract.naming import Namer

    name = Namer().name
    return lambda image: name(image, MASK)


def unsafe():
    from ace.extract.safety import SafetyNet

    net = SafetyNet()
    return lambda image: net([image])


def consistency():
    from ace.extract.consistency import ObjectFeatures

    features = ObjectFeatures()
    return lambda image: features([image])


def sketches():
    from ace.extract import sketch
    from ace.extract.hed import SoftEdges

    edges = SoftEdges()(data.astronaut())
    return lambda image: [draw(edges) for draw in (sketch.draw_doodle, sketch.draw_contour, sketch.draw_scribble)]


def ocr():
    from ace.extract.text import TextReader

    return TextReader().read


def degradation():
    from ace.extract import degrade

    worsen = (
        lambda image: degrade.noise(image, 30.0, 1),
        lambda image: degrade.blur(image, 2.0),
        lambda image: degrade.jpeg(image, 10),
        lambda image: degrade.low_resolution(image, 4),
    )
    return lambda image: [worse(image) for worse in worsen]


def migan():
    from ace.extract.fill import MIGAN

    fill = MIGAN().fill
    return lambda image: fill(image, MASK)


EXTRACTORS = {  # name -> what loads it and gives a function of a picture
    "canny": lambda: exact.canny,
    "gray": lambda: exact.gray,
    "mosaic": lambda: exact.mosaic,
    "4 damages": degradation,
    "FastDepth": fastdepth,
    "BlazePose": blazepose,
    "MTCNN": mtcnn,
    "face mesh": face_mesh,
    "names": names,
    "unsafe": unsafe,
    "likeness": consistency,
    "3 sketches": sketches,
    "PP-OCRv6": ocr,
    "MI-GAN": migan,
    "HED": hed,
    "SAM 2": sam2,
}


def main() -> None:
    """Measure and print."""
    import torch

    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, 512x512 px, best of {REPEATS}")
    image = data.astronaut()
    for name, load in EXTRACTORS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        try:
            extract = load()
        except MissingDependencyError as error:
            print(f"{name:10} left out: {error}")
            continue
        times = []
        for _ in range(1 + REPEATS):
            start = time.process_time()
            extract(image)
            times.append(time.process_time() - start)
        best = min(times[1:])
        print(f"{name:10} {best:8.4f} CPU s a picture, {1 / max(best, 1e-6):9.2f} pictures/s/core", flush=True)


if __name__ == "__main__":
    main()
