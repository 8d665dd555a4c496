"""Functions that are known by name: metrics and groupings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function")


def registrar(registry: dict[str, Function]) -> Callable[[str], Callable[[Function], Function]]:
    """A decorator ``@decorator("name")`` that enters a function into the registry."""

    def decorator(name: str) -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            registry[name] = function
            return function

        return register

    return decorator
