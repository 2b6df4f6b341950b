"""Exceptions: what was expected, what came, where in the user's program, and what to do."""

from __future__ import annotations

from ..kernels.errors import *  # noqa: F403
from ..kernels.errors import VaraxError


class AddressError(VaraxError):
    """The addresses of a program and of the choices given to it do not fit."""


class DuplicateAddressError(AddressError):
    """Two random choices of one program share an address."""


class MissingAddressError(AddressError):
    """A density was asked for and some addresses have no value."""


class UnknownAddressError(AddressError):
    """A value was given for an address that the program does not have."""


class AddressMismatchError(MissingAddressError, UnknownAddressError):
    """Some addresses are missing and others unknown."""


class GuideMismatchError(AddressMismatchError):
    """A guide's addresses are not the model's unobserved addresses."""


class ShapeError(VaraxError):
    """A value has not the shape of its random choice (broadcasting is never assumed)."""


class SupportError(VaraxError):
    """A value lies outside the support of its distribution."""


class UnhandledSampleError(VaraxError):
    """`vx.sample` ran where nothing gives it a meaning."""


class HiddenSampleError(VaraxError):
    """A random choice sits inside a primitive for which varax has no rule."""


class LoopDensityError(VaraxError):
    """The density of a `while_loop` that samples was asked for."""


class TracedBranchError(VaraxError):
    """Python control flow depends on a traced value."""


class DifferentiationError(VaraxError):
    """JAX's own derivative met a random choice, or a derivative that would be silently wrong."""


class CapabilityError(VaraxError):
    """An operation needs a capability that the measure does not have."""


class ObjectiveError(VaraxError):
    """An objective is not what its use needs, such as one number."""


class KeyArgumentError(VaraxError):
    """The first argument of an estimate is not a random key."""


class BudgetError(VaraxError):
    """A search was given no time."""


class EstimatorError(VaraxError):
    """An estimator cannot serve the distribution of its site."""


class NotReparameterizableError(EstimatorError):
    """A pathwise estimator was asked of a distribution without a differentiable sampler."""


class UnsoundEstimatorError(EstimatorError):
    """A pathwise choice reaches an operation that jumps: its derivative would be biased."""


class EnumerationError(EstimatorError):
    """Enumeration was asked of an infinite or continuous support, or of too many paths."""


class BaselineError(EstimatorError):
    """A baseline does not fit its random choice."""


class RelaxationError(EstimatorError):
    """A continuous relaxation reached something that needs a value of the support."""


class BiasedEstimatorError(EstimatorError):
    """A deliberately biased estimator met `strict=True`."""


class BoundDirectionError(ObjectiveError):
    """An estimated density enters an objective on the wrong side for a bound."""


class ParticleError(VaraxError):
    """An algorithm was asked for a number of particles that it cannot use."""


class ProposalMismatchError(AddressMismatchError):
    """A proposal's addresses are not those that it has to propose."""


class NonFiniteError(VaraxError):
    """A fit met a value, a density or a gradient that is not finite.

    Attributes:
        step: the first step, counted from 0, at which it happened.
        params: the parameters at the start of that step.
    """

    step: int
    params: object


class DrawCountError(ObjectiveError):
    """An objective is not defined for so few draws or data points."""


class ClosedFormError(CapabilityError):
    """An objective needs a closed form that is not known."""


class DivergenceError(ObjectiveError):
    """There is no divergence of this name."""


class GroupError(VaraxError):
    """Parameter groups are not parts of the parameters, or leave some of them out."""


class StepError(VaraxError):
    """An inference step, or what it was combined with, is not what a fit or a schedule needs."""


class NoInverseError(CapabilityError):
    """A flow's density was asked for, and its bijection has no inverse."""


class NoDensityError(CapabilityError):
    """A density was asked of a distribution that only its draws define."""


class MissingExtraError(VaraxError, ImportError):
    """A feature needs a package that varax installs on request."""


class InitialisationError(VaraxError):
    """No point was found at which a density and its gradient are finite."""


class GuideKindError(VaraxError):
    """There is no such kind of guide, or it does not serve the model."""


class UncalledModelError(CapabilityError, AttributeError):
    """A model stands where its measure is needed: it was not called with its arguments."""


class ReparameterizationError(VaraxError):
    """A choice cannot be given another centring, or a centring is no number from 0 to 1."""


class UnboundedDensityError(VaraxError):
    """A posterior density has no peak: it is flat in a direction, or rises without end."""
