"""The engine: a checked problem goes in, an ordered table of algorithms decides, one of them computes.

::

    ops.py  --Problem-->  plan.choose  --asks in order-->  pairs -> repeats -> products -> products_last
                                                           -> fourier -> fourier_groups -> strips -> strips_last -> folded
                                                           -> joined -> winograd_small -> winograd_groups -> small_groups
                                                           -> depthwise_paired -> small_planes -> grouped -> winograd
                                                           -> direct -> columns
                                                           (the first that does not decline computes)

    direct.py, weights.py     filters in lanes: jobs       correlate.py, outer.py   their kernels
    weights_cut.py            how the weight gradient is cut     outer_packing.py   and laid out
    tile.py, packing.py       the register tile, and what brings numbers there and back
    sweeps.py                 what an output reads, axis by axis, as tables: all phases of a row together
    folded.py                 input gradients of few channels: jobs      folded_kernels.py   their kernel
    joined.py                 the same of long kernels: neighbouring cells in the lanes
    products.py               windows apart: jobs          products_kernels.py, products_weights.py   its kernels
    products_last.py          channels last: jobs          products_last_kernels.py, products_last_weights.py   its kernels
    repeats.py                1-D windows apart, few filters      repeats_kernels.py   its kernels
    pairs.py                  1x1 in bfloat16, where the CPU multiplies its pairs
    pairs_kernels.py, pairs_last_kernels.py, pairs_outer.py   its kernels
    windows.py                their tile, and windows that are taken apart and put together
    axes.py                   what an output reads, for the two below, which compute phase by phase
    grouped.py                pixels in lanes: jobs        planes.py, planes_outer.py   its kernels
    depthwise.py              the same, channels last      channels.py              its kernels
    depthwise_rows.py         depthwise, 2-D, channels last  depthwise_rows_kernels.py   its kernels
    depthwise_fixed.py        depthwise, 2-D, planes of a known size   depthwise_fixed_kernels.py   its kernels
    depthwise_paired.py       the same, two rows for three quarters   depthwise_paired_kernels.py   its kernels
    depthwise_long.py         depthwise, 1-D, of many taps: weights    depthwise_long_kernels.py   its kernel
    depthwise_spread.py       its input gradient where a stride is not 1, channels first
    small_planes.py           depthwise on small planes      small_planes_kernels.py   its kernels
    small_groups.py           groups of 8 and 16             small_groups_kernels.py   its kernels
    winograd.py               short kernels: jobs          winograd_kernels.py      its kernels
    winograd_weights.py       its weight gradient          winograd_outer.py        its kernels
    winograd_axes.py          strides and long kernels as sums of short ones
    winograd_formulas.py, winograd_tiles.py, winograd_cuts.py   formulas, tiles in memory, pieces
    winograd_groups.py        the same for small groups    winograd_groups_kernels.py   its kernels
    winograd_small.py         the same, tiles in lanes     winograd_small_kernels.py   its kernels
    fourier.py                long 1-D kernels: jobs       fourier_kernels.py, fourier_passes.py   its kernels
    fourier_groups.py         the same of many channels    fourier_groups_kernels.py   its kernels
    strips.py                 first layers, 1-D: jobs      strips_kernels.py, strips_cut.py   its kernel, how rows are cut
    strips_weights.py         its weight gradient          strips_outer.py         its kernel
    strips_last.py            first layers, channels last    strips_last_kernels.py   its kernel
    columns.py                NumPy and its BLAS, always says yes
    bias.py                   the bias gradient, of every problem; a bias added to a transposed one
    down.py                   DownConv, fused              down_kernels.py, down_outer.py   its kernels
    down_plan.py              its jobs, and how they are cut
    pool.py                   pooling                      pool_kernels.py         its kernels
    rectify.py                ReLU, kernels included
    roofline.py               what share of the machine's limit a plan expects
    simd.py                   the language they are written in
    simd_words.py, simd_pointers.py, simd_arrays.py   its words, and memory, traced and on NumPy arrays
    simd_values.py, simd_elements.py   what is traced, how elements are stored
    compile.py, machine.py    texts to machine code, for which CPU
    launch.py, threads.py     a job's threads, and how many    memory.py           workspaces

An algorithm is a module with a ``NAME``, ``declines(problem) -> reason or None``, ``workspace(problem) -> bytes``, for who
reads plans ``blocking(problem) -> words`` and ``share(problem) -> of the machine's limit``, and the three computations
``forward``, ``input_gradient``, ``weight_gradient``, of which one that it always declines may be missing; where it reads dy
for the last it may also offer ``weight_and_bias_gradient``, which reads it once for both, and where it writes dx
``input_gradient_and_bias``, for transposed layers. It sees native arrays of checked shapes with zero padding and writes into
the output it is given: w is C-contiguous, x, y and their gradients are all contiguous in the problem's layout, "first"
(N, C, *spatial) or "last" (N, *spatial, C in memory). It never validates and knows no layer.
"""
