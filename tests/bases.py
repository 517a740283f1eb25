"""A basis of each kind, on data of a few shapes."""

import math

import numpy as np
import pytest

import eqmdm


def random_rotation(shape):
    n_dims = math.prod(shape)
    matrix = np.random.RandomState(n_dims).standard_normal((n_dims, n_dims))
    return eqmdm.PrincipalComponents(np.linalg.qr(matrix)[0], shape)


# Width and height that cannot be halved equally often, several channels, a series and
# points.
BASES = [
    pytest.param(eqmdm.PixelBasis((4, 3, 2)), id="pixels"),
    pytest.param(eqmdm.PixelBasis((3,)), id="pixels_points"),
    pytest.param(eqmdm.HaarBasis((8, 12, 2)), id="haar"),
    pytest.param(eqmdm.HaarBasis((8, 8, 1), 1), id="haar_one_scale"),
    pytest.param(eqmdm.HaarBasis((8, 2)), id="haar_series"),
    pytest.param(eqmdm.CosineBasis((4, 6, 2)), id="cosine"),
    pytest.param(eqmdm.CosineBasis((5, 2)), id="cosine_series"),
    pytest.param(random_rotation((3, 2, 2)), id="rotation"),
    pytest.param(random_rotation((5,)), id="rotation_points"),
]


def some_quick(bases, quick=("haar",)):
    """The same, of which only those with the given names are not slow."""
    mark_slow = lambda p: pytest.param(*p.values, id=p.id, marks=pytest.mark.slow)
    return [p if p.id in quick else mark_slow(p) for p in bases]
