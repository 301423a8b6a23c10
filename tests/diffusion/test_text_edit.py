"""The code that a text moves: the steps of Adam, written out."""

import torch
from torch import Tensor

from lightning_styles.diffusion.respacing import Respaced, even_timesteps, linear_betas
from lightning_styles.diffusion.text_edit import TextEdit, move_code


def test_a_code_moves_by_the_steps_of_adam_on_what_is_predicted_at_each_step_of_the_decoder() -> None:
    W, target = torch.randn(12, 4), torch.randn(2, 12).clamp(-1, 1)
    z_in, x_t0 = torch.randn(2, 4), torch.randn(2, 3, 2, 2)
    decoder = Respaced.of(linear_betas(), even_timesteps(4))
    edit = TextEdit("a", "b", steps=5, lr=0.1, keep=0.2)

    def network(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return 0.3 * x + (z @ W.T).view_as(x) * 0.1 + t.view(-1, 1, 1, 1) / 5000

    def loss(pictures: Tensor) -> Tensor:
        return (pictures.flatten(1) - target).square().mean(1)

    found = move_code(network, z_in, x_t0, decoder, [1, 0], loss, edit)
    a = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)
    x, z, mean, square = x_t0, z_in.clone(), torch.zeros(2, 4), torch.zeros(2, 4)
    for step in range(1, 6):
        first = step % 2 == 1  # the decoder has two steps, told 250 and 0, and begins again after them
        x, t, to = (x_t0, 250, a[0].item()) if first else (x, 0, 1.0)
        now = a[t].item()
        z = z.detach().requires_grad_()
        x_0 = ((x - (1 - now) ** 0.5 * network(x, torch.tensor([t]), z)) / now**0.5).clamp(-1, 1)
        (gradient,) = torch.autograd.grad(loss(x_0).sum() + 0.2 * (z - z_in).square().mean(1).sum(), z)
        x = (to**0.5 * x_0 + (1 - to) ** 0.5 * (x - now**0.5 * x_0) / (1 - now) ** 0.5).detach()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        z = z - 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(found, z.detach(), rtol=1e-4, atol=1e-5)
    assert (found - z_in).abs().min() > 1e-2
