"""``konv bench``: layers of real networks, konv beside the textbook, PyTorch and ONNX Runtime.

::

    layers.py    the rows: real layers by name, in groups, with what konv wants to reach
    exact.py     the inputs of a row, and when a result is right
    peers.py     one class per peer: builds a row, gives a function to time
    worker.py    the process that one peer runs in: one line of JSON in, one out
    measure.py   checks each row, then times the peers in turns
    limits.py    what the machine can do: multiply-adds and bytes per second
    results.py   the numbers of a run, and its JSON file
    table.py, chart.py, compare.py   the same numbers as tables, as a picture, beside another run's
"""
