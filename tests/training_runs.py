"""Short runs of training for the tests of :mod:`konv.training`."""

from konv.training.config import Config
from konv.training.data import Dataset, load
from konv.training.loop import Trainer


def part_of_digits():
    """A part of digits, small enough for many runs."""
    full = load("digits")
    return Dataset(
        "digits",
        full.classes,
        full.train_images[:160],
        full.train_labels[:160],
        full.test_images[:50],
        full.test_labels[:50],
    )


def config(**options):
    return Config.create("digits", **{"epochs": 3, "batch_size": 50, **options})


def trained(config, dataset, epochs=None):
    trainer = Trainer(config, dataset)
    for _ in range(config.epochs if epochs is None else epochs):
        trainer.train_epoch()
    return trainer


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)
