"""Random textures, so that what an autoencoder learns is not tied to what the scenes happen to show."""

import torch
from torch import Tensor


def random_textures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Coloured noise with a spectrum 1/f^a, 0.5 <= a <= 2.5, of random colours: (count, 3, size, size) in [-1, 1].

    A natural picture has a near 1 to 2.
    """
    f = torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size).square()
    f = f.sqrt().clamp(min=1 / size)
    exponent = torch.rand(count, 1, 1, 1, generator=generator) * 2 + 0.5
    white = torch.randn(count, 3, size, size, generator=generator)
    shaped = torch.fft.irfft2(torch.fft.rfft2(white) / f**exponent, s=(size, size))
    shaped = shaped / shaped.std((2, 3), keepdim=True)
    mixing = torch.randn(count, 3, 3, generator=generator) * 0.4
    colour = torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1
    return (torch.einsum("bij,bjhw->bihw", mixing, shaped) + colour).clamp(-1, 1)
