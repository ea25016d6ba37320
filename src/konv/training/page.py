"""``report.html``: the text around the pictures of a training run."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from konv.info import info

if TYPE_CHECKING:
    from konv.training.loop import Trainer
    from konv.training.report import Reading

STYLE = """
:root { color-scheme: light; --ink: #111827; --soft: #4b5563; --line: #e5e7eb; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
p { margin: .25rem 0 .75rem; color: var(--soft); }
section { background: white; border: 1px solid var(--line); border-radius: .6rem; padding: 1.25rem; margin-top: 1.25rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin-top: 1.25rem; }
.figures div { background: white; border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1.1rem; }
.figures b { display: block; font-size: 1.3rem; line-height: 1.3; color: var(--accent); white-space: nowrap; }
.figures span { color: var(--soft); font-size: .9rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
pre { background: #111827; color: #f9fafb; padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto; margin: .75rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.25rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
table.numbers th, table.numbers td { text-align: right; }
details summary { cursor: pointer; color: var(--accent); }
@media (max-width: 45rem) { img { width: 40rem; max-width: none; } } /* smaller, nobody reads them: they scroll */
"""


def page(trainer: Trainer, reading: Reading, pictures: dict[str, str], command: str) -> str:
    """The whole page.

    Parameters
    ----------
    trainer : Trainer
        With at least one finished epoch.
    reading : Reading
        Of the test images.
    pictures : dict
        The PNGs in base64, by name.
    command : str
        What was typed.
    """
    config, last = trainer.config, trainer.history[-1]
    wrong, total = len(reading.misread), len(reading.true)
    seconds = sum(entry["seconds"] for entry in trainer.history)
    parameters = sum(array.size for array in trainer.model.params().values())
    figures = [
        (f"{last['test_accuracy']:.2%}", "test accuracy after the last epoch"),
        (f"{wrong:,} of {total:,}", "test images misread"),
        (duration(seconds), f"training, {len(trainer.history)} epochs"),
        (f"{last['images_per_second']:,.0f}", "images per second in the last epoch"),
        (f"{parameters:,}", "parameters"),
    ]
    layers = " → ".join(type(layer).__name__ for layer in trainer.model.layers)
    shown = len(reading.shown)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>konv: {_(config.model)} on {_(config.dataset)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{_(config.model)} on {_(config.dataset)}</h1>
<p>{_(layers)}</p>
<div class="figures">{"".join(f"<div><b>{_(value)}</b><span>{_(name)}</span></div>" for value, name in figures)}</div>
<section>
<h2>Learning</h2>
<p>Training loss and accuracy are means over the epoch, each image at the time of its step, with dropout, shifts and drawings
where the run has them; test values are measured after the epoch.</p>
{_image(pictures, "curves", "Loss and accuracy over the epochs")}
<details><summary>All numbers</summary><div class="scroll">{_history(trainer.history)}</div></details>
</section>
<section>
<h2>First layer</h2>
<p>{_first_layer_text(trainer)}</p>
{_image(pictures, "filters", "Weights of the first layer")}
</section>
<section>
<h2>Confusion</h2>
<p>Rows are what an image shows, columns what was read. Right readings are blue, mistakes red.</p>
{_image(pictures, "confusion", "Confusion matrix")}
</section>
<section>
<h2>Misread images</h2>
{_misread_text(shown, wrong)}
{_image(pictures, "misread", "Misread test images")}
</section>
<section>
<h2>Run</h2>
{_table([(name, str(value)) for name, value in config.as_dict().items()])}
<pre>{_(command)}</pre>
</section>
<section>
<h2>Machine</h2>
<div class="scroll">{_table(info().rows())}</div>
</section>
</main>
</body>
</html>
"""


def duration(seconds: float) -> str:
    """A time as a person says it.

    Examples
    --------
    >>> duration(8.04), duration(75), duration(7330)
    ('8.0 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _(text: str) -> str:
    return html.escape(text)


def _image(pictures: dict[str, str], name: str, alt: str) -> str:
    return f'<div class="scroll"><img src="data:image/png;base64,{pictures[name]}" alt="{_(alt)}"></div>'


def _table(rows: list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{_(name)}</th><td>{_(value)}</td></tr>" for name, value in rows) + "</table>"


def _history(history: list[dict[str, Any]]) -> str:
    heads = ("epoch", "loss", "accuracy", "test loss", "test accuracy", "seconds", "images / s")
    rows = [
        (
            str(entry["epoch"]),
            f"{entry['loss']:.4f}",
            f"{entry['accuracy']:.2%}",
            f"{entry['test_loss']:.4f}",
            f"{entry['test_accuracy']:.2%}",
            f"{entry['seconds']:.2f}",
            f"{entry['images_per_second']:,.0f}",
        )
        for entry in history
    ]
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="numbers"><tr>{head}</tr>{body}</table>'


def _misread_text(shown: int, wrong: int) -> str:
    if not wrong:
        return ""
    which = (
        f"{shown} of {wrong:,}, the surest mistakes first, with" if shown < wrong else "The surest mistakes first, with"
    )
    return f"<p>{which if wrong > 1 else 'With'} the probability given to the wrong answer.</p>"


def _first_layer_text(trainer: Trainer) -> str:
    if trainer.config.model == "sequence":
        return "What each hidden unit takes from the pixels of a row: red adds, blue subtracts."
    return "Each filter as a picture: red answers to light, blue to dark."
