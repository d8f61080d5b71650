"""Likeness of sentences: all-MiniLM-L6-v2 (Sentence Transformers; English, 22.7 M parameters), in transformers' BERT.

About 1 for the same meaning in other words, 0 for unrelated sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ace.errors import CheckpointError
from ace.extract.weights import find_weights

WIDTH = 384
_LONGEST = 256  # tokens; the rest of a text is not read


class SentenceFeatures:
    """The encoder with its published weights. Raises MissingDependencyError where they are missing."""

    def __init__(self) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        path, words = find_weights("minilm"), find_weights("minilm-tokenizer")
        self._tokens = Tokenizer.from_file(str(words))
        self._tokens.enable_truncation(_LONGEST)
        self._tokens.enable_padding()
        config = BertConfig(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6, num_attention_heads=12)
        net = BertModel(config, add_pooling_layer=False)
        stored = {key: value for key, value in load_file(path).items() if key in net.state_dict()}
        try:
            net.load_state_dict(stored)
        except RuntimeError as error:
            raise CheckpointError(f"{path.name} does not hold the weights of MiniLM ({error})") from error
        self._net = net.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, WIDTH) float32 of length 1: products of rows are likenesses, -1 … 1."""
        if not texts:
            return np.empty((0, WIDTH), np.float32)
        found = self._tokens.encode_batch(list(texts))
        mask = torch.tensor([row.attention_mask for row in found])
        states: Tensor = self._net(torch.tensor([row.ids for row in found]), mask).last_hidden_state  # (N, T, WIDTH)
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=1).numpy()
