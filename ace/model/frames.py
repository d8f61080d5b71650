"""Image frames computed once: keys and values that a target reads at every step, and later turns again.

With `frames_once` a frame sees itself and the frames before it, at timestep 0, with its own text. What it says depends
on nothing that comes later: it is the same at every step, for every guidance branch with the same texts, and in every
later turn of a conversation. Frames of a request are computed one after the other, so that a kept one changes nothing.

Not here: which frames a request has.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents
from ace.model.transformer import ACETransformer, FrameKeysValues


def num_tokens(frames: FrameKeysValues | None) -> int:
    """How many tokens were computed."""
    return 0 if frames is None else len(frames[0][0])


def joined(parts: Sequence[FrameKeysValues | None]) -> FrameKeysValues | None:
    """Several as one, in their order; None if there is nothing in them."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    return tuple(
        (torch.cat([keys for keys, _ in block]), torch.cat([values for _, values in block]))
        for block in zip(*found, strict=True)
    )


def encode_next(
    model: ACETransformer,
    frames: Sequence[RequestFrames],
    images: Sequence[Tensor],
    before: Sequence[FrameKeysValues | None],
) -> list[FrameKeysValues]:
    """Keys and values of one frame of each of several requests, which see those before them.

    frames: from `RequestFrames.image_frames`; images: their latents."""
    sizes = model.sizes
    lengths = [num_tokens(own) for own in before]
    layout = make_layout(
        frames, sizes.patch_size, sizes.head_dim, (), sizes.rotary, bool(sizes.memory_blocks), lengths
    ).to(model.device)
    channels = sizes.latent_channels if sizes.source_on_channels else 0
    patches = pack_latents(images, [condition_patches(f, sizes.patch_size, channels) for f in frames], sizes.patch_size)
    texts = torch.cat([frame.texts[0] for frame in frames])
    made = model.encode_frames(patches.to(texts), layout, texts, joined(before))
    counts = [rows * columns for rows, columns in layout.target_sizes]
    split = [tuple(part.split(counts) for part in block) for block in made]
    return [tuple((keys[n], values[n]) for keys, values in split) for n in range(len(frames))]


def encode_all(model: ACETransformer, requests: Sequence[RequestFrames]) -> list[FrameKeysValues | None]:
    """Keys and values of all image frames of several requests, None for those without."""
    chains = [request.image_frames() for request in requests]
    done: list[FrameKeysValues | None] = [None] * len(requests)
    for depth in range(max(map(len, chains), default=0)):
        active = [n for n, chain in enumerate(chains) if len(chain) > depth]
        made = encode_next(
            model,
            [chains[n][depth] for n in active],
            [requests[n].images[depth] for n in active],
            [done[n] for n in active],
        )
        for n, own in zip(active, made, strict=True):
            done[n] = joined([done[n], own])
    return done


class FrameCache:
    """Keys and values of the frames that were shown last, found by the frame and all that came before it; bounded, the
    longest unused go first. A kept one is what computing it again would give.

    max_bytes: 256 MiB, about 300 frames of the small model."""

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.num_encoded = 0
        self._kept: OrderedDict[bytes, FrameKeysValues] = OrderedDict()
        self._num_bytes = 0

    def encode(self, model: ACETransformer, request: RequestFrames) -> FrameKeysValues | None:
        """As `encode_all` for one request; only what is not kept is computed."""
        done: FrameKeysValues | None = None
        chain = f"{id(model)} {model.dtype} {model.device}".encode()
        for frame, image in zip(request.image_frames(), request.images, strict=True):
            parts = [image, frame.texts[0], *([] if frame.target_mask is None else [frame.target_mask])]
            content = b"".join(str(tuple(part.shape)).encode() + _bytes(part) for part in parts)
            chain = hashlib.blake2b(chain + str(frame.indicators).encode() + content).digest()
            own = self._kept.get(chain)
            if own is None:
                (own,) = encode_next(model, [frame], [image], [done])
                self.num_encoded += 1
                self._keep(chain, own)
            self._kept.move_to_end(chain)
            done = joined([done, own])
        return done

    def clear(self) -> None:
        """Forget everything: needed only if the model's weights were changed in place."""
        self._kept.clear()
        self._num_bytes = 0

    def _keep(self, chain: bytes, own: FrameKeysValues) -> None:
        self._kept[chain] = own
        self._num_bytes += _size(own)
        while self._num_bytes > self.max_bytes and len(self._kept) > 1:
            self._num_bytes -= _size(self._kept.popitem(last=False)[1])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()


def _size(frames: FrameKeysValues) -> int:
    return sum(part.nbytes for block in frames for part in block)
