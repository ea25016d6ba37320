"""The engine: a checked problem goes in, an ordered table of algorithms decides, one of them computes.

::

    ops.py  --Problem-->  plan.choose  --asks in order-->  pairs -> repeats -> products -> products_last
                                                           -> fourier -> fourier_groups -> strips -> strips_last -> folded
                                                           -> joined -> winograd_rows -> winograd_small
                                                           -> winograd_groups -> small_groups
                                                           -> depthwise_paired -> small_planes -> grouped
                                                           -> winograd_strided -> winograd -> direct -> columns
                                                           (the first that does not decline computes)

    products/     1x1 kernels, and kernels as long as their stride     a folder is a family of algorithms:
    fourier/      long 1-D kernels                                     its __init__ tells its files
    stems/        layers of few channels
    winograd/     kernels of two to five taps
    groups/       depthwise layers, small groups, layers of few filters
    direct/       every other layer
    columns.py    NumPy and its BLAS, always says yes
    downconv/     DownConv, fused: no convolution of the table
    pooling/      pooling                           rectify.py    ReLU, kernels included     adam.py    its update
    bias.py       the bias gradient, of every problem; a bias added to a transposed one
    tile.py       the register tile                 packing.py    what brings numbers there and back
    windows.py    the tile where windows lie apart, and how they are taken apart and put together
    roofline.py   what share of the machine's limit a plan expects
    simd/         the language that kernels are written in
    compile.py    texts to machine code             machine.py    for which CPU
    launch.py     a job's threads                   threads.py    how many      memory.py    workspaces
    prepared.py   jobs with what they borrow, and the ways in that algorithms share
    addresses.py  what is run again and again, without arrays
    contention.py fewer, where other programs want the cores

An algorithm is a module with a ``NAME``, ``declines(problem) -> reason or None``, ``workspace(problem) -> bytes``, for who
reads plans ``blocking(problem) -> words`` and ``share(problem) -> of the machine's limit``, and the three computations
``forward``, ``input_gradient``, ``weight_gradient``, of which one that it always declines may be missing; where it reads dy
for the last it may also offer ``weight_and_bias_gradient``, which reads it once for both, and where it writes dx
``input_gradient_and_bias``, for transposed layers; with ``forward_rectified`` and ``input_gradient_rectified``, for strides
of 1, a ReLU behind or before costs no pass of its own (:mod:`konv.rectified`). It sees native arrays of checked shapes with
zero padding and writes into the output it is given: w is C-contiguous, x, y and their gradients are all contiguous in the
problem's layout, "first" (N, C, *spatial) or "last" (N, *spatial, C in memory). It never validates and knows no layer. What
it computes without looking at arrays it may offer as a run on addresses: ``on_addresses(problem) -> OnAddresses or None``.
"""
