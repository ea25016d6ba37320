"""The engine: a checked problem goes in, an ordered table of algorithms decides, one of them computes.

::

    ops.py  --Problem-->  plan.choose  --asks in order-->  ordered -> columns
                                                           (the first that does not decline computes)

An algorithm is a module with a ``NAME``, ``declines(problem) -> reason or None``, ``workspace(problem) -> bytes`` and the
three computations ``forward``, ``input_gradient``, ``weight_gradient``. It sees native arrays of checked shapes with zero
padding, in any memory layout, and writes into the output it is given. It never validates and knows no layer.
"""
