"""The options of `eqmdm sample`."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

from ..fields import CommaSeparated, check_at_least, chosen, positional
from ..names import ClockName, GridName, ObserveMethod, Range
from ..outputs import PictureOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How samples are drawn."""

    solver: str = "dpm"
    """The solver by name: one of the library's own (dpm, edm-heun, ancestral, sscs and
    others) or one of Diffrax's. Of Diffrax's, sea, heun and others solve the reverse
    SDE; tsit5 and those with the prefix ode- solve the probability-flow ODE. A wrong
    name lists all. module:name is your own code, which is then run: a Diffrax solver
    (with the prefix ode- for the ODE), a sampler, its class, or a function without
    arguments that makes one."""
    steps: int = 50
    """Steps of the solver from noise to data."""
    grid: GridName = "default"
    """The spacing of the steps: uniform in time, in its square root (quadratic: fine
    towards the data), in the log signal-to-noise ratio (SNR), or in SNR^(-1/(2 rho)).
    default chooses the spacing that suits the solver."""
    rho: float = 7.0
    """For the grid rho: the larger, the more steps near the data."""
    clock: ClockName = "time"
    """The independent variable of Diffrax's solvers: the diffusion's time, its log-SNR
    or the angle arctan SNR^-1/2. The grid places the steps; the clock decides what is
    smooth between them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """The condition of the samples, for a model trained with --condition."""

    condition: str | None = chosen("classes, or conditions of test examples, in turn")
    """A class by name or number, or numbers separated by commas (nan for a missing
    one); none for the unconditional data."""
    guidance: float = 1.0
    """The scale of classifier-free guidance: above 1 samples are more typical of their
    condition, and less diverse."""
    guidance_interval: Range | None = chosen("all of it", metavar="LOW HIGH")
    """The interval in log signal-to-noise ratio in which guidance acts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObservationOptions:
    """An observation of test images, which the samples are given."""

    observe: str | None = chosen("nothing", metavar="WHAT")
    """What is seen of an image: mask:left-half, mask:top-half, mask:center:N (all but a
    square of N pixels), mask:random:FRACTION (of the pixels), downsample:F (means of
    blocks of F pixels), blur:STD (of STD pixels, around the edges), or a file .npz with
    a matrix A, the numbers o = A x and, if they have noise, its noise_std, for pixels x
    from -1 to 1."""
    observe_noise: float = 0.1
    """The standard deviation of the noise of the observation, for pixels from -1 to 1;
    0 for none."""
    observe_image: Annotated[
        tuple[int, ...], CommaSeparated(int, "INDEX,INDEX,...")
    ] = (0,)
    """The numbers of the test images that are observed. --n-samples are drawn for each
    of them."""
    observe_method: ObserveMethod = "auto"
    """How samples are given the observation: exact, which takes an observation of
    single pixels and a model trained with --snr vector; moment-matching, which is
    approximate and takes all; or auto, the exact one where it applies."""

    def check_observation(self) -> None:
        """**Raises:** `ValueError` for options that are invalid for any run."""
        if self.observe is None:
            for name in ("observe_noise", "observe_image", "observe_method"):
                default = ObservationOptions.__dataclass_fields__[name].default
                if getattr(self, name) != default:
                    raise ValueError(
                        f"`{name}` must come with an `observe`; got "
                        f"{getattr(self, name)}."
                    )
        if not 0 <= self.observe_noise < math.inf:
            raise ValueError(
                "`observe_noise` must be at least 0 and finite; got "
                f"{self.observe_noise}."
            )
        if not self.observe_image:
            raise ValueError("`observe_image` must name one test image or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The samples and their output directory."""

    n_samples: int = 64
    """The number of samples."""
    batch_size: int = 64
    """Samples drawn at once. It affects speed and memory, but samples only by
    rounding."""
    seed: int = 0
    """The seed of every random draw. Sample number i does not depend on the number of
    samples, and starts from the same noise with every solver."""
    ema: bool = True
    """Use the moving average of the parameters instead of the last ones."""
    trust_code: bool = False
    """Import the user's own diffusion and network that the run names as module:name."""
    data_dir: str | None = chosen("that of the run")
    """A directory with the image files (parquet)."""
    output_dir: Path | None = chosen("RUN/samples-<solver>-<steps>")
    """The directory of the results."""
    overwrite: bool = False
    """Replace existing samples in the output directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions(
    SamplerOptions, ConditionOptions, ObservationOptions, OutputOptions, PictureOptions
):
    """Draw samples from a trained model, with any solver.

    RUN is a directory that `eqmdm train` wrote. The result is a picture (samples.png)
    and the samples with the settings that drew them (samples.npz). With --observe they
    are samples of the images that an observation leaves possible.
    """

    run: Path = positional("RUN")
    """The directory of the run; its last checkpoint is used."""

    @property
    def directory(self) -> Path:
        # Not every file system allows the colon of module:name in a file name.
        names = ["samples", self.solver.replace(":", "-"), str(self.steps)]
        if self.condition is not None:
            names.append(self.condition.replace("/", "-").replace(":", "-"))
        if self.guidance != 1:
            names.append(f"guided{self.guidance:g}")
        if self.observe is not None:
            what = Path(self.observe).stem if self.is_file else self.observe
            names.append(what.replace(":", "-"))
            images = map(str, self.observe_image)
            names += [] if self.is_file else [f"of-{'-'.join(images)}"]
        return self.output_dir or self.run / "-".join(names)

    @property
    def is_file(self) -> bool:
        """Whether the observation is read from a file."""
        return self.observe is not None and self.observe.endswith(".npz")

    def check(self) -> None:
        """**Raises:** `ValueError` for options that are invalid for any run."""
        check_at_least(self, {"steps": 1, "n_samples": 1, "batch_size": 1, "seed": 0})
        self.check_observation()
        if (self.directory / "samples.npz").exists() and not self.overwrite:
            raise ValueError(
                "`output_dir` must not hold samples already; "
                f"{self.directory} does. Choose another --output-dir, or replace them "
                "with --overwrite."
            )

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on."""
        names = ["solver", "steps", "grid", "clock", "n_samples", "seed", "ema"]
        names += ["rho"] if self.grid == "rho" else []
        names += [] if self.condition is None else ["condition"]
        if self.guidance != 1:
            names += ["guidance", "guidance_interval"]
        if self.observe is not None:
            names += ["observe", "observe_noise", "observe_image", "observe_method"]
        return {name: getattr(self, name) for name in names}
