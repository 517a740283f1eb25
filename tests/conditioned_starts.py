"""Normal data with an auxiliary variable that starts about a multiple of them."""

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from references import VARIANCE

import eqmdm


Q, D = np.array([[0.0, -1.0], [1.0, 0.0]]), np.diag([0.0, 2.0])
SPREAD = 0.2
LOG_DENSITY = -1.621671


def langevin(**options):
    return eqmdm.LinearDiffusion(
        Q, D, start_covariance=np.diag([0.0, SPREAD]), **options
    )


def exact_score(diffusion, slope):
    """The score of normal data whose auxiliary starts at a multiple of them."""
    start = VARIANCE * np.outer([1, slope], [1, slope]) + np.diag([0.0, SPREAD])

    def score(t, y):
        step = diffusion.compute_transition(jnp.zeros_like(t), t)
        S = step.mean_map @ jnp.asarray(start, t.dtype) @ step.mean_map.T
        (a, b), (c, d) = S + step.root @ step.root.T
        # Cramer's rule: a large batch of LAPACK's solves hung within a loop on a CPU.
        return -jnp.stack([d * y[0] - b * y[1], a * y[1] - c * y[0]]) / (a * d - b * c)

    return score


def model_of(diffusion, score, mean):
    return eqmdm.ConditionedStartModel(eqmdm.FunctionModel(score, diffusion), mean)


def exact_model(slope, diffusion):
    mean = lambda x: slope * x[None]
    return model_of(diffusion, exact_score(diffusion, slope), mean)


def end_divergence(slope):
    """The divergence of the law at t1 from the prior, which the exact score leaves."""
    Psi = scipy.linalg.expm(-(Q + D) * 5.05)
    excess = VARIANCE * np.outer([1, slope], [1, slope]) + np.diag([-1, SPREAD - 1])
    S = np.eye(2) + Psi @ excess @ Psi.T
    return 0.5 * (np.trace(S) - 2 - np.linalg.slogdet(S)[1])
