"""``konv.torch.convert``: a model's convolutions computed by konv, in place; and back."""

from __future__ import annotations

import difflib
import fnmatch
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.utils import parametrize

from konv.names import names_told
from konv.torch import modules
from konv.torch.causal import CausalConv1d
from konv.torch.functional import Met

NAMES = [f"{lazy}Conv{transpose}{n}d" for lazy in ("", "Lazy") for transpose in ("", "Transpose") for n in (1, 2, 3)]
CLASSES: dict[type[nn.Module], type[nn.Module]] = {getattr(nn, name): getattr(modules, name) for name in NAMES}
LATER = " from its first input on"  # said of a layer that has no weights before
ORIGINALS = {ours: theirs for theirs, ours in CLASSES.items()}
Only = str | Iterable[str] | Callable[[str, nn.Module], bool]


@dataclass
class Conversion:
    """What :func:`convert` did to a model, or would do. ``print`` it.

    Attributes
    ----------
    model : the model
    swapped : name of a module -> what it is, such as "Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2))"
    left : name of a convolution that stayed as it was -> why
    already : names of those that konv computed before
    dry_run : whether nothing was changed
    undone : whether :meth:`undo` took it back
    """

    model: nn.Module
    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    already: list[str] = field(default_factory=list)
    dry_run: bool = False
    undone: bool = False
    _modules: list[nn.Module] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Make PyTorch compute the swapped modules again. Parameters, hooks and buffers stay as they are now."""
        for module in self._modules:
            if _rebased(module, ORIGINALS) is not None:
                _become(module, ORIGINALS)
                vars(module).pop(modules.ONLY_WHERE_FASTER, None)
        self._modules.clear()
        self.undone = not self.dry_run

    def __call__(self, *arguments: Any, **more: Any) -> NoReturn:
        """Always refused: the model was changed in place, this is the report about it."""
        raise TypeError("convert(model) changes the model in place and returns a report: call the model itself")

    def __str__(self) -> str:
        verb = "would be computed by konv" if self.dry_run else "computed by konv"
        ours, lazy = len(self.swapped) + len(self.already), sum(what.endswith(LATER) for what in self.swapped.values())
        more = f", {lazy} more{LATER}".replace("its", "its" if lazy == 1 else "their") if lazy else ""
        lines = [f"{ours - lazy} of {ours + len(self.left)} convolutions {verb}{more}"]
        if self.undone:
            lines[0] += ", until it was undone"
        lines += [f"  {name or '(the model)'}: {what}" for name, what in self.swapped.items()]
        lines += [f"  {name or '(the model)'} was konv's already" for name in self.already]
        lines += [f"  {name or '(the model)'} stays as it is: {why}" for name, why in self.left.items()]
        return "\n".join(lines)

    __repr__ = __str__


@names_told
def convert(model: nn.Module, *, only: Only | None = None, dry_run: bool = False) -> Conversion:
    """Let konv compute a model's convolutions on the CPU. The model is changed in place and stays the same otherwise.

    Each convolution keeps its identity: only its class becomes that of :mod:`konv.torch`. So parameters, their
    ``requires_grad``, ``state_dict``, hooks, optimizers that hold the parameters, modules used in several places, and weight
    or spectral norm (of either kind) remain. A converted layer still decides at each call: where konv expects no gain for the
    shapes it gets, and wherever konv does not compute (other devices, integers, symbolic traces, ...), PyTorch's own
    operation runs.

    Parameters
    ----------
    model : torch.nn.Module
        Any; it may be a convolution itself.
    only : str, iterable of str, or callable, optional
        Which convolutions: patterns of their names in ``model.named_modules()``, such as ``"layer1.*"``, or a function of name
        and module that says True. All of them without it.
    dry_run : bool
        Tell what would be done, and change nothing.

    Returns
    -------
    Conversion
        What was swapped, what was left and why; its ``undo()`` takes it all back.

    Raises
    ------
    TypeError
        ``model`` is no ``torch.nn.Module``; ``only`` is none of these.
    ValueError
        A pattern of ``only`` fits no convolution of the model; the nearest names are told.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    >>> convert(model, only="2")
    1 of 2 convolutions computed by konv
      2: Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), groups=8)
      0 stays as it is: not among those asked for
    >>> conversion = convert(model)
    >>> type(model[0])
    <class 'konv.torch.modules.Conv2d'>
    >>> conversion.undo()
    >>> type(model[0])
    <class 'torch.nn.modules.conv.Conv2d'>
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={reprlib.repr(model)}: expected a torch.nn.Module")
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)]
    wanted = _wanted(only, [name for name, _ in found])
    conversion = Conversion(model, dry_run=dry_run)
    for name, module in found:
        if isinstance(module, (*ORIGINALS, CausalConv1d)):
            conversion.already.append(name)
            continue
        if (why := _why_not(name, module, wanted)) is not None:
            conversion.left[name] = why
            continue
        conversion.swapped[name] = _description(module)
        if not dry_run:
            _become(module, CLASSES)
            setattr(module, modules.ONLY_WHERE_FASTER, Met())
            conversion._modules.append(module)
    return conversion


def _wanted(only: Only | None, names: list[str]) -> Callable[[str, nn.Module], bool]:
    """``only`` as a function."""
    if only is None:
        return lambda name, module: True
    if callable(only):
        return only
    patterns = [only] if isinstance(only, str) else list(only) if isinstance(only, Iterable) else None
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"only={only!r}: expected names of modules, patterns such as 'layer1.*', or a function of name and module"
        )
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, cutoff=0.3) or names[:3]
            raise ValueError(
                f"only={only!r}: {pattern!r} fits no convolution of the model; near: {', '.join(near) or 'it has none'}"
            )
    return lambda name, module: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _why_not(name: str, module: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> str | None:
    """Why a convolution stays as it is; None if it is to be swapped."""
    if not wanted(name, module):
        return "not among those asked for"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit"
    if _rebased(module, CLASSES) is None:
        return f"{type(module).__module__}.{type(module).__name__} is a class of its own"
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was replaced"
    places = {parameter.device.type for parameter in module.parameters()}
    if places - {"cpu", "meta"}:
        return f"its parameters are on {', '.join(sorted(places))}"
    if odd := {str(p.dtype) for p in module.parameters() if not p.is_floating_point()}:
        return f"its parameters are {', '.join(sorted(odd))}"
    return None


def _rebased(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> type[nn.Module] | None:
    """The class that takes the place of a module's; None if there is none.

    A parametrized module has a class of its own, made of the one that it had: it is made again of the one that it gets.
    """
    own = type(module)
    if own in classes:
        return classes[own]
    if parametrize.is_parametrized(module) and len(own.__bases__) == 1 and own.__bases__[0] in classes:
        body = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
        return type(own.__name__, (classes[own.__bases__[0]],), body)
    return None


def _become(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    """Give a module the class that takes the place of its own."""
    changed = _rebased(module, classes)
    assert changed is not None
    module.__class__ = changed


def _description(module: nn.Module) -> str:
    """What ``print`` shows of it, in a line."""
    base = next((cls for cls in type(module).__mro__ if cls in CLASSES), type(module))
    lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params()
    return f"{base.__name__}({module.extra_repr()})" + (f",{LATER}" if lazy else "")
