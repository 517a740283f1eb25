"""A process of logistic noise for processes.toml."""

import eqmdm


def logistic(*, interval: eqmdm.TimeInterval) -> eqmdm.TargetDiffusion:
    """The process towards a logistic law of variance 1, with the rate of VPSDE."""
    return eqmdm.TargetDiffusion(
        [[0.0]],
        [[0.5]],
        eqmdm.LogisticTarget(),
        schedule=eqmdm.LinearSchedule(),
        interval=interval,
    )
