"""The options of `eqmdm train` for a denoiser that is told a vector of SNRs."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class SNROptions:
    """What the denoiser is told about the noise."""

    snr: Literal["scalar", "vector"] = "scalar"
    """scalar: one signal-to-noise ratio (SNR) for the whole example. vector: the SNR of
    every coefficient in the basis, so that the model conditions exactly on coefficients
    that are observed with or without noise, and serves every diffusion that differs by
    coefficient."""
    basis: Literal["pixels", "haar", "cosine", "principal-components"] = "pixels"
    """With --snr vector: the orthonormal basis of the coefficients. pixels serves
    masks; haar, low resolution; cosine, blurs; principal-components are those of the
    training data. Samples and results are in pixels in any case."""
    scalar_share: float = 0.5
    """With --snr vector: the share of the training examples with one SNR, on which the
    bound depends."""


def check_snr(options: Any) -> None:
    """**Raises:** `ValueError` for options of SNR vectors that contradict others."""
    if options.snr == "scalar":
        for name in ("basis", "scalar_share"):
            given = getattr(options, name)
            if given != getattr(SNROptions, name):
                raise ValueError(
                    f"`{name}` must be left out without --snr vector; got {given}."
                )
        return
    if options.score != "denoiser":
        raise ValueError(
            "`snr` must be scalar for the free score, which is trained for one "
            "diffusion; got vector. Use --score denoiser."
        )
    if options.decoder == "discrete" and options.basis != "pixels":
        raise ValueError(
            "`basis` must be pixels for discrete levels, since only pixels have levels "
            f"that the decoder can give the mass of; got {options.basis}. Use another "
            "--dequantisation."
        )
    if not 0 < options.scalar_share < 1:
        raise ValueError(
            "`scalar_share` must be strictly between 0 and 1; got "
            f"{options.scalar_share}. Use 0.5 or more."
        )
