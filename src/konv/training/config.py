"""The options of a training run, checked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from konv.names import did_you_mean
from konv.training.data import DATASETS

MODELS = ("simple", "deep", "sequence")
OPTIMIZERS = ("sgd", "momentum", "adam")
DEFAULT_EPOCHS = {"digits": 60, "mnist": 6, "fashion-mnist": 6}
DEFAULT_LR = {"sgd": 0.1, "momentum": 0.02, "adam": 0.002}
HALF_LIFE = {"digits": 12, "mnist": 2, "fashion-mnist": 2}  # epochs in which the learning rate halves


@dataclass(frozen=True)
class Config:
    """What fixes a training run: two runs of equal config end with the same bits on the same machine.

    Attributes
    ----------
    dataset : {"digits", "mnist", "fashion-mnist"}
        See :mod:`konv.training.data`.
    model : {"simple", "deep", "sequence"}
        See :mod:`konv.training.models`.
    epochs : int
        Passes over the training images, at least 1.
    batch_size : int
        Images per step, at least 1.
    optimizer : {"sgd", "momentum", "adam"}
        The rule of the update.
    lr : float
        The learning rate of the first epoch, finite and above 0. It falls from epoch to epoch, to half in every 12 epochs
        of digits and 2 of the others: whatever ``epochs`` is, so that a run can be prolonged.
    seed : int
        Of the weights, the shuffling, the dropout, the shifts and which drawings are shown; at least 0.
    augment : bool
        Whether training images are shifted by up to one pixel (8 x 8) or two (larger) along either axis, newly drawn in
        every epoch: :func:`konv.training.loop.shifted`; and whether a tenth of the images of digits give their place to
        drawn ones: :mod:`konv.training.pen`.

    Raises
    ------
    TypeError, ValueError
        A field has the wrong type, or a value outside those above.

    Examples
    --------
    >>> Config.create("digits", epochs=3).optimizer
    'adam'
    >>> Config.create("digits", lr=-1)
    Traceback (most recent call last):
        ...
    ValueError: lr must be a finite number above 0, got -1
    """

    dataset: str
    model: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    seed: int
    augment: bool

    def __post_init__(self) -> None:
        for name, allowed in (("dataset", DATASETS), ("model", MODELS), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}; got {value!r}{did_you_mean(value, allowed)}"
                )
        for name, lowest in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float):
            raise TypeError(f"lr must be a number, got {self.lr!r}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number above 0, got {self.lr}")
        if not isinstance(self.augment, bool):
            raise TypeError(f"augment must be True or False, got {self.augment!r}")

    @classmethod
    def create(
        cls,
        dataset: str | None = None,
        *,
        model: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: str | None = None,
        lr: float | None = None,
        seed: int | None = None,
        augment: bool | None = None,
    ) -> Config:
        """A config in which None stands for the default, which may depend on the data set or the optimizer."""
        dataset = DATASETS[0] if dataset is None else dataset
        optimizer = "adam" if optimizer is None else optimizer
        return cls(
            dataset=dataset,
            model=MODELS[0] if model is None else model,
            epochs=DEFAULT_EPOCHS.get(dataset, 1) if epochs is None else epochs,
            batch_size=(32 if dataset == "digits" else 100) if batch_size is None else batch_size,
            optimizer=optimizer,
            lr=DEFAULT_LR.get(optimizer, 1.0) if lr is None else lr,
            seed=0 if seed is None else seed,
            augment=True if augment is None else augment,
        )

    def resumed(self, finished: int, given: dict[str, Any]) -> Config:
        """The config to go on with after ``finished`` epochs, if the options now ``given`` (None: not given) allow it.

        Only ``epochs`` may change: anything else would make the run another one.

        Raises
        ------
        ValueError
            Another option differs, or ``epochs`` is less than what is finished.

        Examples
        --------
        >>> Config.create("digits", epochs=3).resumed(3, {"epochs": 5, "seed": None}).epochs
        5
        """
        conflicts = [
            f"{name} is {getattr(self, name)} in the checkpoint and {value} now"
            for name, value in given.items()
            if name != "epochs" and value is not None and value != getattr(self, name)
        ]
        if conflicts:
            raise ValueError("cannot resume: " + "; ".join(conflicts) + ". Leave the option out, or start a new run")
        epochs = given.get("epochs")
        if epochs is None:
            return self
        if epochs < finished:
            raise ValueError(f"cannot resume: {finished} epochs are finished and epochs={epochs} is asked for")
        return replace(self, epochs=epochs)

    def command(self) -> str:
        """The command line that starts this run anew, with every option spelled out."""
        return (
            f"konv train {self.dataset} --model {self.model} --epochs {self.epochs} --batch-size {self.batch_size} "
            f"--optimizer {self.optimizer} --lr {self.lr} --seed {self.seed} "
            f"--{'augment' if self.augment else 'no-augment'}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of :meth:`as_dict`; ValueError for a missing or unknown field."""
        names = {field.name for field in fields(cls)}
        if names != values.keys():
            raise ValueError(
                f"config: missing {sorted(names - values.keys())}, unknown {sorted(values.keys() - names)}"
            )
        return cls(**values)
