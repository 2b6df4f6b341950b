"""The exceptions of varax, public as `varax.errors`."""

from ..transforms.errors import *  # noqa: F403
