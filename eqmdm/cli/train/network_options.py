"""The options of `eqmdm train` for the network and its optimisation."""

import dataclasses
from typing import Any, Literal

from ..fields import chosen


def _by_data_set() -> Any:
    return chosen("depends on the data set, see below")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network that is trained."""

    network: str | None = chosen("unet for images in grey levels")
    """The network: unet, for images and series; mlp, which flattens examples of any
    shape; or your own as module:name, called as make(shape, n_vars, key=key)."""
    score: Literal["denoiser", "free"] = "denoiser"
    """What the network predicts: denoiser, the data from one channel, so that one
    network suits every diffusion; free, the noise in all channels, as in MDM."""
    width: int | None = _by_data_set()
    """Channels of the U-Net's first level; hidden units of the MLP."""
    multipliers: tuple[int, ...] | None = _by_data_set()
    """The width of each level of the U-Net, in multiples of the first."""
    n_blocks: int | None = _by_data_set()
    """Residual blocks per level of the U-Net; layers of the MLP."""
    patch: int | None = _by_data_set()
    """The side of the patches of pixels that the U-Net folds into channels; 1 for none.
    Patches make a narrow network several times faster."""
    preconditioning: Literal["normal", "spike-and-slab"] | None = _by_data_set()
    """What a denoiser is without its network: the posterior mean of normal pixels, or
    of pixels with a few frequent levels, such as the background of drawings. The
    default is normal for the free score, for another --basis than pixels, and for
    --transform logit."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype that the U-Net computes in; its parameters are float32."""
    remat: bool = False
    """Recompute the blocks of the U-Net for gradients instead of storing their
    activations: less memory for about a third more work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Optimisation."""

    preset: Literal["laptop"] | None = None
    """Defaults for images: laptop is a small network, which trains for about an hour
    and a half of one CPU core on grey images of the size of MNIST, and for an hour on
    colour images of the size of CIFAR-10."""
    steps: int | None = _by_data_set()
    """The total number of training steps; a resumed run may be given more."""
    batch_size: int | None = _by_data_set()
    """Examples per step."""
    accumulate: int = 1
    """Steps whose gradients are averaged into one update."""
    learning_rate: float | None = _by_data_set()
    """The learning rate of Adam for the network."""
    diffusion_learning_rate: float | None = chosen("that of the network")
    """The learning rate of Adam for a learned diffusion."""
    warmup: int | None = _by_data_set()
    """Updates over which the learning rates warm up."""
    decay: Literal["none", "cosine"] | None = _by_data_set()
    """Whether the learning rate stays, or falls to 0.01 of itself at the last step,
    along a cosine; the number of steps is then fixed when a run starts."""
    clip: float = 1.0
    """The gradient norm above which gradients are clipped."""
    ema_decay: float | None = _by_data_set()
    """The decay of the moving average of parameters, which evaluation and samples
    use."""
    drop_condition: float = 0.1
    """With --condition: the probability of leaving out the condition of an example, so
    that the network also learns the unconditional data, which guidance needs."""
    ema_profiles: bool = False
    """Keep two more averages and store them with each checkpoint, in RUN/averages, so
    that `eqmdm evaluate --ema-length` can use an average of any length: two copies of
    the parameters in memory, and two on disk for each checkpoint."""


def check_network(options: Any) -> None:
    """**Raises:** `ValueError` for options of the network that contradict others."""
    n_updates = options.steps // options.accumulate
    if options.decay == "cosine" and n_updates <= options.warmup:
        raise ValueError(
            f"`steps` must make more updates than `warmup`, {options.warmup}, if the "
            f"learning rate decays after it; got {options.steps} steps and {n_updates} "
            "updates."
        )
    if options.patch != 1 and options.network == "mlp":
        raise ValueError(
            f"`patch` must be 1 for the MLP, which has no patches; got {options.patch}."
        )
    if options.preconditioning == "normal":
        return
    if options.score != "denoiser":
        raise ValueError(
            "`preconditioning` must be normal for the free score; got "
            f"{options.preconditioning}."
        )
    if options.snr == "vector" and options.basis != "pixels":
        raise ValueError(
            "`basis` must be pixels for --preconditioning spike-and-slab, since only "
            f"pixels have frequent levels; got {options.basis}."
        )
