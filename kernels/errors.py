"""The base of all exceptions, and those of the kernels."""

from __future__ import annotations

from typing import Any

from .source import user_line


class VaraxError(Exception):
    """Base class. The message has a headline and labelled lines, empty ones left out.

    Args:
        headline: one sentence.
        address: the random choice concerned.
        expected, got: what the operation needs and what it was given.
        where: `file:line (function)` in the user's program.
        fix: the way out.
    """

    def __init__(
        self,
        headline: str,
        *,
        address: tuple[str, ...] | str | None = None,
        expected: object = None,
        got: object = None,
        where: str | None = None,
        fix: str | None = None,
    ):
        shown = show_address(address) if address else None
        rows = {"address": shown, "expected": expected, "got": got, "at": where, "fix": fix}
        lines = [f"  {label + ':':<10}{text}" for label, text in rows.items() if text is not None]
        super().__init__("\n".join([headline, *lines]))
        self.address = shown
        self.where = where


def show_address(address: tuple[str, ...] | str) -> str:
    """`("local", "z")` is written `local/z`."""
    return address if isinstance(address, str) else "/".join(address)


class KernelError(VaraxError):
    """An operation cannot be computed as it was asked for; says where in the user's program."""

    def __init__(self, headline: str, **labels: Any):
        super().__init__(headline, **{"where": user_line()} | labels)


class KernelShapeError(KernelError, ValueError):
    """The operands of an operation have shapes that do not fit one another."""


class KernelDtypeError(KernelError, TypeError):
    """An operand of an operation has a dtype that it cannot have."""


class KernelValueError(KernelError, ValueError):
    """An operand has a value for which the operation is not defined."""


class NotPositiveDefiniteError(KernelValueError):
    """A matrix that is to be factored is not positive definite."""


class NoSuchImplementationError(KernelError, ValueError):
    """An implementation was asked for by a name that no operation has."""


class ImplementationRefusedError(KernelError, NotImplementedError):
    """The implementations that were asked for do not serve this call."""


class NativeBuildError(KernelError, RuntimeError):
    """The native library could not be built or loaded."""
