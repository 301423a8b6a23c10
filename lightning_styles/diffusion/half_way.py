"""Photos noised half-way with a diffusion autoencoder: what OSASIS decodes (arXiv 2402.17275, section 3.2)."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_styles.diffusion.ddim import encode
from lightning_styles.diffusion.respacing import (
    Respaced,
    aligned_decode_indices,
    decode_indices,
    encode_indices,
    even_timesteps,
    linear_betas,
)
from lightning_styles.errors import UserError
from lightning_styles.files import replacing
from lightning_styles.models.diffae import DiffAE
from lightning_styles.reading import read_made, tensor

Encoding = tuple[Tensor, Tensor]  # codes z (P, D) and noised pictures x_t0 (P, 3, S, S)


def picture_process(steps: int) -> Respaced:
    """The picture process with `steps` evenly spaced timesteps."""
    return Respaced.of(linear_betas(), even_timesteps(steps))


@torch.no_grad()
def codes(A: DiffAE, images: Tensor) -> Tensor:
    """The codes z (P, D) of `images` (P, 3, S, S) in [-1, 1], in A's own precision, whatever the trainer's."""
    with torch.autocast(images.device.type, enabled=False):
        return A.encoder(images)


@torch.no_grad()
def encode_half_way(A: DiffAE, images: Tensor, process: Respaced, t0: float) -> Encoding:
    """The codes of `images` (P, 3, S, S) in [-1, 1], and the pictures noised to t0 in (0, 1) with A and these codes.

    In A's own precision, whatever the trainer's: the rounding of every step stays in the picture.
    """
    z = codes(A, images)
    with torch.autocast(images.device.type, enabled=False):
        return z, encode(partial(A, z=z), images, process, encode_indices(len(process), t0))


def decoder_indices(encoder: Respaced, decoder: Respaced, t0: float, start: Literal["below", "aligned"]) -> list[int]:
    """Steps j of `decoder`, in order, for pictures that `encoder` noised to t0: see `decode_indices` and its fellow.

    Raises:
        UserError: t0 is less than a step.
    """
    aligned = start == "aligned"
    indices = aligned_decode_indices(decoder, encoder, t0) if aligned else decode_indices(len(decoder), t0)
    if not indices:
        raise UserError(f"t0 is {t0}, less than one of the encoder's {len(encoder)} steps; take a larger one.")
    return indices


def brought(batch: Mapping[str, Any], own: Mapping[str, Any]) -> Encoding | None:
    """The encodings that a batch brings in `z` and `x_t0`; None where it brings none.

    Args:
        batch: of the data; `encoding` says how it was encoded.
        own: how the method encodes.

    Raises:
        UserError: the data encodes in another way.
    """
    if "x_t0" not in batch:
        return None
    theirs = batch["encoding"]
    if differing := [key for key in own if theirs.get(key) != own[key]]:
        found = ", ".join(f"{key} {theirs.get(key)} instead of {own[key]}" for key in differing)
        raise UserError(
            f"the data's photos are encoded with {found}; let encode, diffae and size of data follow model."
        )
    return batch["z"], batch["x_t0"]


class KeptEncodings:
    """Encodings in a folder, a file for each photo, so that the next style finds them there.

    Args:
        folder: made when missing; may hold encodings of other recipes too.
        embedding: length D of the codes.
        recipe: what decides an encoding beside the photo: network, precision, steps, t0.
    """

    def __init__(self, folder: Path, embedding: int, *recipe: str | float) -> None:
        self.folder, self.embedding = folder, embedding
        self.recipe = repr(recipe).encode()

    def __call__(self, images: Tensor, make: Callable[[Tensor], Encoding]) -> Encoding:
        """The encodings of `images` (P, 3, S, S); `make` makes those that are missing, all at once."""
        files = [self._file(image) for image in images]
        kept = {i: _read(file, images.shape[1:], self.embedding) for i, file in enumerate(files)}
        found = {i: encoding for i, encoding in kept.items() if encoding is not None}
        missing = [i for i in range(len(files)) if i not in found]
        if missing:
            for i, z, x in zip(missing, *make(images[missing]), strict=True):
                found[i] = (z, x)
                with replacing(files[i]) as temporary:
                    torch.save((z.cpu().clone(), x.cpu().clone()), temporary)
        z, x = (torch.stack([found[i][part].to(images.device) for i in range(len(files))]) for part in (0, 1))
        return z, x

    def _file(self, image: Tensor) -> Path:
        pixels = image.detach().float().contiguous().numpy(force=True).tobytes()
        key = hashlib.sha256(self.recipe + repr(tuple(image.shape)).encode() + pixels)
        return self.folder / f"{key.hexdigest()[:24]}.pt"


def _read(file: Path, shape: torch.Size, embedding: int) -> Encoding | None:
    """A kept encoding of a picture; None where there is none, or none that is whole: it is then made again."""
    try:
        z, x = read_made(file, (tensor(embedding), tensor(*shape)))
    except (OSError, UserError):
        return None
    return z, x
