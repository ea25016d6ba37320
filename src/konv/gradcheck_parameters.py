"""The parameters of a layer that is checked: found by name, replaced by float64 copies, their gradients."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np


def float64_parameters(layer: Any) -> list[tuple[np.ndarray, list[str]]]:
    """The parameters of ``layer``, replaced in it by float64 ones, each with its names: several where it is shared."""
    originals = _named_parameters(layer)
    for name, array in originals.items():
        if not is_float(array):
            raise TypeError(f"parameter {name!r} is no float array")
    replacements = {id(array): np.array(array, np.float64) for array in originals.values()}
    _replace(layer, replacements, set())
    shared: dict[int, tuple[np.ndarray, list[str]]] = {}
    for name, array in _named_parameters(layer).items():
        if array is not replacements[id(originals[name])]:
            raise TypeError(f"parameter {name!r} could not be put in float64: no attribute, list or dict holds it")
        shared.setdefault(id(array), (array, []))[1].append(name)
    return list(shared.values())


def gradients_of(layer: Any) -> dict[str, Any]:
    """The gradients that backward left, by the parameters' names: ``grads()``, else the siblings."""
    if callable(getattr(layer, "grads", None)):
        return dict(layer.grads())
    return {name: getattr(layer, "d" + name) for name in _named_parameters(layer)}


def _named_parameters(layer: Any) -> dict[str, Any]:
    """By ``params()``, else every float array that has a sibling ``d<name>``."""
    if callable(getattr(layer, "params", None)):
        return dict(layer.params())
    attributes = {name: value for name, value in getattr(layer, "__dict__", {}).items() if hasattr(layer, "d" + name)}
    return {name: value for name, value in attributes.items() if is_float(value) and name not in ("x", "y", "out")}


def is_float(value: Any) -> bool:
    """Whether it is an array that gradients exist for."""
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def _replace(holder: Any, replacements: dict[int, np.ndarray], seen: set[int]) -> None:
    """Put ``replacements[id(a)]`` where array a stands, in all attributes, lists and dicts that ``holder`` leads to."""
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, dict):
        places = list(holder.items())
    elif isinstance(holder, (list, tuple)):
        places = list(enumerate(holder))
    elif hasattr(holder, "__dict__") and not isinstance(holder, type) and not inspect.ismodule(holder):
        holder = vars(holder)
        places = list(holder.items())
    else:
        return
    for key, value in places:
        if not isinstance(value, np.ndarray):
            _replace(value, replacements, seen)
        elif id(value) in replacements and not isinstance(holder, tuple):
            holder[key] = replacements[id(value)]
