"""Text-driven manipulation: a photo's code moves until CLIP sees the change that two texts name (OSASIS, B.2).

The paper (arXiv 2402.17275) gives the loss, keeps x_t0 and the autoencoder A as they are and moves the code z. All else
is this package's own choice: A decodes, for I_A is a photo; one step of Adam on z at each step of the decoder, on the
x_0 predicted there, as OSASIS trains; passes of the decoder from x_t0 until `steps` steps of Adam are done; 50 of them
at a rate of 0.01, and no pull back to the first z.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from lightning_styles.diffusion.ddim import step_down
from lightning_styles.diffusion.respacing import Respaced
from lightning_styles.errors import UserError, at_least, check_keys
from lightning_styles.losses.clip_direction import NO_DIRECTION, cosine_distance, direction
from lightning_styles.precision import LOSS_SCALE


@dataclass(frozen=True)
class TextEdit:
    """What is to change and how hard z is pushed.

    Attributes:
        source: what the photo shows, in words.
        target: what it shall show.
        steps: of Adam.
        lr: of Adam.
        keep: weight of mean (z - z_in)^2, which holds the photo's identity.
    """

    source: str
    target: str
    steps: int = 50
    lr: float = 0.01
    keep: float = 0.0

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "TextEdit":
        """The edit of a config.

        Raises:
            UserError: a key is missing, unknown, or out of range.
        """
        names = [field.name for field in fields(cls)]
        check_keys("text", settings, names)
        if not all(str(settings.get(key) or "").strip() for key in ("source", "target")):
            raise UserError("text needs a source and a target, such as {source: a face, target: a smiling face}.")
        edit = cls(**settings)
        at_least(1, **{"text.steps": edit.steps})
        at_least(0, **{"text.lr": edit.lr, "text.keep": edit.keep})
        return edit


def move_code(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    z: Tensor,
    x_t0: Tensor,
    decoder: Respaced,
    indices: Sequence[int],
    loss: Callable[[Tensor], Tensor],
    edit: TextEdit,
) -> Tensor:
    """z* (P, D): `z` after `edit.steps` steps of Adam on the loss of the pictures that it decodes to.

    Args:
        network: eps(x, t, z) of A, frozen, of any precision.
        z: codes (P, D) to start from.
        x_t0: the photos (P, 3, S, S) noised to t0; they stay as they are.
        decoder: the process that decodes.
        indices: its steps, descending, from x_t0 to a picture.
        loss: predicted pictures (P, 3, S, S) -> losses (P,).
        edit: how hard to push.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(z.device.type, enabled=False):
        z_in, x_t0 = z.detach().clone(), x_t0.detach().clone()
        z = z_in.clone().requires_grad_()
        x, optimizer = x_t0, Adam([z], edit.lr, eps=1e-8 * LOSS_SCALE)
        for update in range(edit.steps):
            turn = update % len(indices)
            x = x_t0 if turn == 0 else x
            j = indices[turn]
            x_next, x_0 = step_down(decoder, j, x, network(x, decoder.t(j, x), z))
            optimizer.zero_grad()
            (LOSS_SCALE * (loss(x_0).sum() + edit.keep * (z - z_in).square().mean(1).sum())).backward()
            optimizer.step()
            x = x_next.detach()
        return z.detach()


def text_loss(clip: Any, photos: Tensor, edit: TextEdit, normalize: bool = False) -> Callable[[Tensor], Tensor]:
    """1 - cos(E_T(target) - E_T(source), E_I(picture) - E_I(photo)) of pictures (P, 3, S, S): (P,) (equations 28, 29).

    Args:
        clip: `text` and `image` give the embeddings of texts and pictures.
        photos: I_A (P, 3, S, S) in [-1, 1].
        edit: source and target.
        normalize: take directions between embeddings of unit length.

    Raises:
        UserError: CLIP sees no difference between the two texts.
    """
    with torch.inference_mode(False), torch.no_grad():
        source, target = clip.text([edit.source, edit.target])[:, None]
        wanted, e_photos = direction(target, source, normalize), clip.image(photos.clone())
    if wanted.norm() <= NO_DIRECTION * (1.0 if normalize else max(source.norm(), target.norm())):
        raise UserError(f"CLIP sees no difference between '{edit.source}' and '{edit.target}'; change text.target.")
    return lambda pictures: cosine_distance(wanted, direction(clip.image(pictures), e_photos, normalize))
