"""Functions as commands: what a function takes by position and by keyword, on a command line."""

from __future__ import annotations

import argparse
import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from fedjx.core.language.types import ArrayType, children, parse_type


def add_arguments(
    parser: argparse.ArgumentParser, function: Callable[..., Any], leave_out: tuple[str, ...] = ()
) -> None:
    """Adds a function's parameters: positional ones as they are, keyword-only ones as ``--options``.

    What no command line can say, such as a function, is left out; then it needs a default.
    """
    hints = typing.get_type_hints(function)
    texts = _described(function)
    for name, parameter in inspect.signature(function).parameters.items():
        options = _options(hints[name])
        is_required = parameter.default is parameter.empty
        if name in leave_out or (options is None and not is_required):
            continue
        if options is None:
            raise TypeError(
                f"a command needs types that can be written; got {name} of {function.__name__}. Leave it out."
            )
        if not is_required:
            options["default"] = parameter.default
        options["help"] = texts.get(name)
        if parameter.kind is parameter.KEYWORD_ONLY:
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, required=is_required, **options)
        else:
            options.setdefault("metavar", name.upper())
            parser.add_argument(name, **options)


def called(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Calls a function with what was parsed for its parameters."""
    positional, named = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        value = options.get(name)
        if isinstance(value, list) and len(value) == 1 and "int" in str(parameter.annotation).split(" | "):
            (value,) = value  # One number where one or several may be given is the one.
        if name in options and parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = value
        elif name in options:
            positional.append(value)
    return function(*positional, **named)


def first_line(function: Callable[..., Any]) -> str:
    """Returns the first sentence of a function's documentation."""
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")


def _options(hint: Any) -> dict[str, Any] | None:
    """Returns how `argparse` reads a type, or None where it cannot."""
    if hint == ArrayLike:
        return {"type": _number, "nargs": "+"}
    if hint == Mapping[str, ArrayType]:
        return {"type": _features, "metavar": "NAME=TYPE,..."}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        several = [options for part in inner if part is not type(None) and (options := _options(part))]
        # Of one and several the latter, which can say both.
        return next((options for options in several if "nargs" in options), several[0] if several else None)
    if origin is typing.Literal:
        return {"choices": inner}
    if origin in (collections.abc.Sequence, collections.abc.Iterable, tuple, list):
        item = _options(inner[0])
        return item and {**item, "nargs": len(inner) if origin is tuple and Ellipsis not in inner else "+"}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint} if hint in (str, int, float, Path) else None


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _features(text: str) -> dict[str, ArrayType]:
    """Reads types as they are printed: ``pixels=uint8[28,28],label=int32``."""
    try:
        found = dict(children(parse_type(f"<{text.strip('<>')}>")) or [])
        if not found or None in found:
            raise ValueError
        return {str(name): ArrayType(type_.shape, type_.dtype) for name, type_ in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise argparse.ArgumentTypeError(
            f"types are NAME=TYPE, such as x=float32[28,28],y=int32; got {text!r}"
        ) from None


def _described(function: Callable[..., Any]) -> dict[str, str]:
    """Returns the text of each parameter under ``Args:``."""
    texts: dict[str, str] = {}
    name = ""
    for line in _section(inspect.getdoc(function) or ""):
        if line.startswith("  ") and not line.startswith("   ") and ":" in line:
            name, text = line.strip().split(":", 1)
            texts[name] = text.strip()
        elif name:
            texts[name] += " " + line.strip()
    return {name: text.replace("`", "").replace("%", "%%") for name, text in texts.items()}


def _section(text: str) -> Iterator[str]:
    _, _, after = text.partition("\nArgs:\n")
    for line in after.splitlines():
        if not line.startswith(" "):
            return
        yield line
