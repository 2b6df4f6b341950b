"""The exceptions of varax, public as `varax.errors`."""

from ..transforms.errors import *  # noqa: F403
from .errors_posterior import *  # noqa: F403
from .errors_quantize import *  # noqa: F403
from .errors_runs import *  # noqa: F403
