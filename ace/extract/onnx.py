"""Opening a pinned ONNX file or TensorFlow Lite file for the CPU, quietly and always computed alike.

One thread by default: a data engine runs one worker per core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ace.errors import MissingDependencyError
from ace.extras import install_command


def open_onnx(path: Path, num_threads: int = 1) -> Any:
    """An `onnxruntime.InferenceSession`. Raises MissingDependencyError without onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"this extractor needs onnxruntime: {install_command('data')}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # gives memory back; the largest activations are hundreds of megabytes
    options.log_severity_level = 3  # initialisers that nothing uses are no news
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_tflite(path: Path, num_threads: int = 1) -> Any:
    """An `ai_edge_litert` interpreter with its tensors allocated. Raises MissingDependencyError without the package."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingDependencyError(f"this extractor needs ai-edge-litert: {install_command('data')}") from error
    interpreter = Interpreter(
        str(path),
        num_threads=num_threads,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter
