"""The distribution of a pixel, as the record of a run holds it."""

import dataclasses
from typing import Any

import eqmdm
from eqmdm._model.data_scale import known_levels


def describe_pixel(
    dataset: eqmdm.data.Dataset, levels: eqmdm.GreyLevels | None
) -> dict[str, Any]:
    """The distribution of the pixels of the training data.

    **Raises:** `ValueError` for data that are not in grey levels, or have no frequent
    level.
    """
    if levels is None:
        raise ValueError(
            "`preconditioning` must be normal for data that are not in grey levels; "
            "got spike-and-slab."
        )
    pixel = eqmdm.SpikeAndSlab.of(known_levels(dataset), levels)
    if not pixel.n_spikes:
        raise ValueError(
            "`preconditioning` must be normal for images without frequent levels; got "
            "spike-and-slab, and no level has half a percent of the pixels."
        )
    return dataclasses.asdict(pixel)


def pixel_of(record: dict[str, Any] | None) -> eqmdm.SpikeAndSlab | None:
    """The distribution that `describe_pixel` recorded."""
    return None if record is None else eqmdm.SpikeAndSlab(**record)
