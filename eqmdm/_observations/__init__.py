"""Observations of the data, and models of the data given them."""

from . import observe as observe
from .exact import Exact as Exact
from .linear import LinearObservation as LinearObservation
from .moment_matching import MomentMatching as MomentMatching
from .particles import ParticleResult as ParticleResult
from .posterior import ObservedModel as ObservedModel
from .twisted_smc import TwistedSMC as TwistedSMC
