"""What every test may rely on: no network, a Ctrl-C that arrives, a clear skip where a device is missing, and nothing
left open by another file."""

import gc
import os
import signal
from collections.abc import Iterator

# Read by huggingface_hub and transformers when they are imported: a test never reaches for a file that is not on disk.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Several processes at once (pytest-xdist): one thread each, also in what they start, or they fight for the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Started in the background of a shell, this process and its children would ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def left_open() -> Iterator[None]:
    """A file, socket or event loop that a test leaves open is an error in its own file, wherever it is collected."""
    yield
    gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
