"""The worker of diffusers: its U-Net and schedulers, trained as in its example.

It has no likelihood. For points the network is that of eqmdm, in PyTorch layers.
"""

import math
import sys
from importlib.metadata import version

import numpy as np
import problems
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from protocol import Case, serve
from torch.utils.flop_counter import FlopCounterMode


class ResidualLayer(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear1 = torch.nn.Linear(width, width)
        self.linear_time = torch.nn.Linear(4 * width, width)
        self.linear2 = torch.nn.Linear(width, width)

    def forward(self, x, time):
        hidden = self.linear1(F.silu(x)) + self.linear_time(time)
        return x + self.linear2(F.silu(hidden))


class MLP(torch.nn.Module):
    """The layers of `eqmdm.nn.MLP`; time is the index of a scheduler step."""

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3):
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", frequencies)
        self.time1 = torch.nn.Linear(width, 4 * width)
        self.time2 = torch.nn.Linear(4 * width, 4 * width)
        self.linear_in = torch.nn.Linear(dim, width)
        self.layers = torch.nn.ModuleList(ResidualLayer(width) for _ in range(depth))
        self.linear_out = torch.nn.Linear(width, dim)

    def forward(self, y, t):
        angles = t.reshape(-1, 1).to(y.dtype) * self.frequencies
        time = self.time1(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1))
        time = F.silu(self.time2(F.silu(time)))
        x = self.linear_in(y)
        for layer in self.layers:
            x = layer(x, time)
        return self.linear_out(F.silu(x))


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=32,
        # One attention head with all 64 channels.
        attention_head_dim=64,
    )


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP()


def facts_of(images: bool) -> dict:
    network = unet() if images else mlp()
    y = torch.zeros(1, 1, 28, 28) if images else torch.zeros(1, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(y, torch.zeros(1))
    return {
        "n_parameters": sum(p.numel() for p in network.parameters()),
        "flops": counter.get_total_flops(),
        "network": "its own" if images else "the same",
    }


def output(found):
    return found if isinstance(found, torch.Tensor) else found.sample


def train(images: bool, *, compiled: bool, channels_last: bool = False):
    def build(settings):
        network = unet() if images else mlp()
        if images:
            x = problems.as_data(problems.images(settings["images"], 0))
            x = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        else:
            x = problems.points().draw(settings["points"], 0)
            x = torch.from_numpy(x.astype(np.float32))
        if channels_last:
            network = network.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        scheduler = DDPMScheduler(num_train_timesteps=1000)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        forward = torch.compile(network) if compiled else network

        def call():
            noise = torch.randn_like(x)
            t = torch.randint(0, 1000, (len(x),))
            noisy = scheduler.add_noise(x, noise, t)
            loss = F.mse_loss(output(forward(noisy, t)), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()

        return Case(call, facts_of(images))

    return build


def sample_images(scheduler: str, *, compiled: bool, channels_last: bool = False):
    def build(settings):
        network = unet()
        if channels_last:
            network = network.to(memory_format=torch.channels_last)
        if compiled:
            network.compile()
        classes = {
            "DDPM": (DDPMPipeline, DDPMScheduler),
            "DDIM": (DDIMPipeline, DDIMScheduler),
        }
        pipeline_class, scheduler_class = classes[scheduler]
        pipeline = pipeline_class(network, scheduler_class(num_train_timesteps=1000))
        pipeline.set_progress_bar_config(disable=True)
        n_samples, n_steps = settings["sampled_images"], settings["evaluations"]

        def call():
            pipeline(
                batch_size=n_samples,
                num_inference_steps=n_steps,
                output_type="np",
                generator=torch.Generator().manual_seed(2),
            )

        return Case(call, {"n_samples": n_samples, "evaluations": n_steps})

    return build


def exact_noise(law: problems.Mixture, alphas: torch.Tensor):
    """The exact prediction of a network that knows the law."""
    means = torch.from_numpy(law.means).float()
    variances = torch.from_numpy(law.variances).float()

    def predict(y, t):
        alpha = alphas[t.long()]
        total = alpha * variances + 1 - alpha
        gaps = y[:, None] - alpha.sqrt() * means
        weights = torch.softmax(-0.5 * (gaps**2 / total).sum(-1), dim=1)
        return (1 - alpha).sqrt() * (weights[..., None] * gaps / total).sum(1)

    return predict


def sample_points(scheduler_class, *, compiled: bool):
    def build(settings):
        n_samples, n_steps = settings["sampled_points"], settings["evaluations"]
        scheduler = scheduler_class(num_train_timesteps=1000, clip_sample=False)

        def sampler(predict):
            @torch.no_grad()
            def draw():
                generator = torch.Generator().manual_seed(2)
                y = torch.randn(n_samples, 2, generator=generator)
                scheduler.set_timesteps(n_steps)
                for t in scheduler.timesteps:
                    noise = predict(y, t)
                    y = scheduler.step(noise, t, y, generator=generator).prev_sample
                return y

            return draw

        def check():
            law = problems.points()
            predict = exact_noise(law, scheduler.alphas_cumprod)
            return problems.sample_distance(law, sampler(predict)().numpy())

        network = mlp()
        predict = torch.compile(network) if compiled else network
        facts = {"n_samples": n_samples, "evaluations": n_steps}
        return Case(sampler(predict), facts, check)

    return build


CASES = {
    ("train images", "eager"): train(True, compiled=False),
    ("train images", "compiled, channels last"): train(
        True, compiled=True, channels_last=True
    ),
    ("train points", "eager"): train(False, compiled=False),
    ("train points", "compiled"): train(False, compiled=True),
    ("sample images", "DDPM, eager"): sample_images("DDPM", compiled=False),
    ("sample images", "DDIM, eager"): sample_images("DDIM", compiled=False),
    ("sample images", "DDIM, compiled, channels last"): sample_images(
        "DDIM", compiled=True, channels_last=True
    ),
    ("sample points", "DDPM, eager"): sample_points(DDPMScheduler, compiled=False),
    ("sample points", "DDIM, eager"): sample_points(DDIMScheduler, compiled=False),
    ("sample points", "DDIM, compiled"): sample_points(DDIMScheduler, compiled=True),
}

if __name__ == "__main__":
    versions = {"python": sys.version.split()[0]}
    versions |= {name: version(name) for name in ("torch", "diffusers")}
    serve(CASES, {"versions": versions, "threads": torch.get_num_threads()})
