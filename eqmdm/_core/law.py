"""Laws of states that can be drawn from and evaluated."""

import abc

import equinox as eqx

from .types import PRNGKey, Scalar, State


class AbstractLaw(eqx.Module):
    """A law of states `(vars, *data)`, such as a prior."""

    @abc.abstractmethod
    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> State:
        """A draw of shape `(vars, *shape)`."""

    @abc.abstractmethod
    def log_density(self, y: State) -> Scalar:
        """The log-density at `y`, in nats, summed over every data coordinate."""
