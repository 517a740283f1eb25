"""The distribution of a single pixel with noise, by the laws of SciPy."""

import numpy as np
from scipy.stats import norm


def noisy_pixel(law, sigma, z):
    """The log-density of z = x + sigma e under a spike-and-slab law, and E[x | z]."""
    total = np.hypot(sigma, law.std)
    parts = [law.slab_share * norm.pdf(z, law.mean, total)]
    means = [law.mean + (law.std / total) ** 2 * (z - law.mean)]
    for centre, width, share in zip(law.centres, law.widths, law.shares, strict=True):
        if width == 0:
            parts.append(share * norm.pdf(z, centre, sigma))
            means.append(np.full_like(z, centre))
            continue
        low, high = ((centre + s * width / 2 - z) / sigma for s in (-1, 1))
        # Reflected, so that the mass is the difference of two lower tails.
        near, far = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
        mass = norm.cdf(far) - norm.cdf(near)
        parts.append(share / width * mass)
        inside = (norm.pdf(low) - norm.pdf(high)) / np.where(mass > 0, mass, 1)
        means.append(np.where(mass > 0, z + sigma * inside, centre))
    density = sum(parts)
    mean = sum(p * m for p, m in zip(parts, means, strict=True)) / density
    return np.log(density), mean
