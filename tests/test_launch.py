"""Threads where they are difficult: several callers, forked children, interrupts, PyTorch's pool beside ours."""

import concurrent.futures
import importlib.util
import os
import signal
import sys
import time

import numpy as np
import pytest

import konv
from compare import assert_same_bits
from konv.engine import launch, threads
from konv.engine.compile import kernel
from konv.engine.memory import address
from programs import finish_program, run_program, start_program

with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SHAPES = [
    ((2, 8, 12, 13), (16, 8, 3, 3)),
    ((1, 3, 40), (7, 3, 5)),
    ((4, 6, 9, 9), (6, 1, 3, 3)),
    ((1, 16, 7, 7), (8, 16, 1, 1)),
]


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """As many threads for small work as for large."""
    monkeypatch.setattr(threads, "SMALL_WORK", 1)
    monkeypatch.setattr(threads, "_threads", 3)


def test_a_system_that_cannot_tell_a_process_s_cores(monkeypatch):
    """macOS and Windows have no ``sched_getaffinity``."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_threads", None)
    assert konv.get_threads() == os.cpu_count()


@kernel
def count_calls():
    """``counts[piece] += 1; slots[piece] = slot``"""

    def text(piece, slot, counts, slots, step):
        counts[piece] = counts[piece] + step
        slots[piece] = slot

    return text, {"counts": "int64", "slots": "int64"}


@pytest.fixture(params=["pool", "Python threads"])
def launcher(request, monkeypatch):
    if request.param == "Python threads":
        monkeypatch.setattr(launch, "_pool_process", None)


def everything(seed):
    """Results of a forward and a backward of each shape."""
    rng, results = np.random.default_rng(seed), []
    for x_shape, w_shape in SHAPES:
        x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape))
        options = dict(padding=1, groups=x_shape[1] // w_shape[1])
        y = konv.conv(x, w, **options)
        results += [y, *konv.conv_backward(y, x, w, **options)]
    return results


@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize("pieces, threads", [(1, 1), (1, 7), (2, 2), (100, 1), (100, 3), (1000, 7), (0, 2)])
def test_every_piece_is_run_once_in_a_slot_below_the_number_of_threads(pieces, threads):
    counts, slots = np.zeros(pieces + 1, np.int64), np.full(pieces + 1, -1)
    for _ in range(3):
        launch.Job(count_calls(), pieces, step=5).run(threads, counts=address(counts), slots=address(slots))
    assert (counts[:-1] == 15).all() and counts[-1] == 0
    assert ((slots[:-1] >= 0) & (slots[:-1] < threads)).all() and slots[-1] == -1


def test_a_job_refuses_arguments_that_its_kernel_does_not_have():
    with pytest.raises(TypeError, match=r"has no arguments \['stride'\]"):
        launch.Job(count_calls(), 1, step=1, stride=2)
    with pytest.raises(TypeError, match=r"needs \['counts', 'slots'\], got \['counts'\]"):
        launch.Job(count_calls(), 1, step=1).run(1, counts=0)


def test_a_job_keeps_its_tables():
    """They lie where the kernel was told, for as long as the job is run."""

    @kernel
    def look_up():
        def text(piece, slot, first, y, table, x, size):
            y[piece] = x[table[piece % size]] + first

        return text, {"x": "int64", "y": "int64", "table": "int64"}

    job = launch.Job(look_up(), 6, first=100, table=np.array([2, 0, 1]), size=3)
    junk = [np.full(3, 77) for _ in range(50)]  # would be where the table was
    x, y = np.array([10, 11, 12]), np.zeros(6, np.int64)
    job.run(2, x=address(x), y=address(y))
    assert y.tolist() == [112, 110, 111] * 2 and len(junk) == 50


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros(0), np.zeros((4, 5))[::-1, 1::2], np.broadcast_to(np.float32(1), (2, 3))]
)
def test_the_address_of_an_array(array):
    assert address(array) == array.__array_interface__["data"][0] == array.ctypes.data


@pytest.mark.usefixtures("launcher")
def test_eight_python_threads_at_once():
    expected = [everything(seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for results, right in zip(pool.map(everything, range(8)), expected):
                for result, other in zip(results, right):
                    assert_same_bits(result, other)


FORKED = """
    import os, sys, threading, time
    {first}
    import numpy as np, konv
    from konv.engine import threads
    threads.SMALL_WORK = 1
    konv.set_threads(2)
    x, w = np.arange(600.0).reshape(1, 6, 10, 10), np.arange(324.0).reshape(6, 6, 3, 3)
    def work():
        y = konv.conv(x, w, padding=1)
        return [y, *konv.conv_backward(y, x, w, padding=1)]
    right = work() if {before} else None
    {meanwhile}
    child = os.fork()
    if not child:
        results = work()
        same = right is None or all(np.array_equal(a, b) for a, b in zip(results, right))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if right is not None:
        assert all(np.array_equal(a, b) for a, b in zip(work(), right))
"""
USE_TORCH = "import torch; torch.set_num_threads(2); torch.ones(4, 64, 64, 64).exp().sum().item()"
COMPILE_MEANWHILE = """
    from konv.engine.compile import compile_ir, compiling, load, trace
    def compile_many():
        def text(piece, slot, y):
            for i in range(500):
                y[i] = y[i] + 1.0
        while True:
            with compiling:
                load(compile_ir(trace(text, {"y": "float32"})))
            time.sleep(0.001)  # the lock is for others too
    threading.Thread(target=compile_many, daemon=True).start()
"""
TORCH = importlib.util.find_spec("torch") is not None


@with_fork
@pytest.mark.parametrize("before", [True, False], ids=["konv was used", "konv was not used"])
@pytest.mark.parametrize(
    "first, meanwhile",
    [
        ("", ""),
        pytest.param(USE_TORCH, "", marks=pytest.mark.skipif(not TORCH, reason="needs PyTorch")),
        ("", COMPILE_MEANWHILE),
    ],
    ids=["alone", "beside PyTorch", "while a thread compiles"],
)
def test_in_a_forked_child(first, meanwhile, before):
    if meanwhile and sys.version_info >= (3, 12):
        pytest.skip("Python warns of fork beside threads")
    run_program(FORKED.format(first=first, meanwhile=meanwhile, before=before))


@with_fork
@pytest.mark.skipif(not TORCH, reason="needs PyTorch")
def test_konv_is_imported_in_a_forked_child_of_a_program_that_used_openmp():
    run_program(f"""
        import os
        {USE_TORCH}
        child = os.fork()
        if not child:
            import numpy as np, konv
            from konv.engine import threads
            threads.SMALL_WORK = 1
            konv.set_threads(2)
            y = konv.conv(np.ones((4, 8, 9)), np.ones((8, 8, 3)))
            os._exit(0 if (y == 24).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


@pytest.mark.skipif(not TORCH, reason="needs PyTorch")
@pytest.mark.parametrize("order", ["konv, torch", "torch, konv"])
def test_beside_pytorch_in_either_order(order):
    run_program(f"""
        import {order}, numpy as np
        konv.set_threads(2); torch.set_num_threads(2)
        x, w = np.ones((2, 32, 40, 40), np.float32), np.ones((32, 32, 3, 3), np.float32)
        for _ in range(20):
            y = konv.conv(x, w)
            other = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w)).numpy()
            assert abs(y - other).max() <= 1e-2  # of 288; one of them may be Winograd
    """)


def test_the_environment_stays_as_it_was():
    """A variable for the pool is set while the pool's library is loaded, not for later programs or libraries."""
    run_program("""
        import os
        before = dict(os.environ)
        import numpy as np, konv
        from konv.engine import threads
        threads.SMALL_WORK = 1
        konv.set_threads(2)
        konv.conv(np.ones((4, 8, 9)), np.ones((8, 8, 3)))
        assert dict(os.environ) == before
    """)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT for one process")
@pytest.mark.parametrize("pool", [True, False], ids=["pool", "Python threads"])
def test_ctrl_c_leaves_a_usable_library(pool):
    """The interrupt is raised once all helpers have stopped writing, and the next results are right."""
    process = start_program(f"""
        import signal, sys, time
        import numpy as np, konv
        from konv.engine import launch, threads
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits that it is ignored
        threads.SMALL_WORK = 1
        konv.set_threads(3)
        if not {pool}:
            launch._pool_process = None
        x, w = np.ones((40, 16, 30, 30), np.float32), np.ones((16, 16, 5, 5), np.float32)
        right = konv.conv(x[:2], w)
        interrupts = 0
        began = time.monotonic()
        while interrupts < 5 and time.monotonic() - began < 100:
            try:
                print("ready", flush=True)  # in here: what is sent from now on is caught
                while time.monotonic() - began < 100:
                    konv.conv(x, w)
            except KeyboardInterrupt:
                interrupted = time.monotonic()
                while len(sys._current_frames()) > 1:  # helpers that have done their part leave
                    assert time.monotonic() - interrupted < 60
                    time.sleep(0.01)
                assert np.array_equal(konv.conv(x[:2], w), right)
                interrupts += 1
        assert interrupts == 5
    """)
    for _ in range(5):
        if process.stdout.readline().strip() != "ready":
            break  # its end is told below
        time.sleep(0.03)
        process.send_signal(signal.SIGINT)
    finish_program(process)


def test_where_no_more_threads_can_be_made(monkeypatch):
    """What was begun is finished, then the error is raised."""
    monkeypatch.setattr(launch, "_pool_process", None)
    real, started = launch._thread.start_new_thread, []

    def start(function, arguments):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(function)
        return real(function, arguments)

    monkeypatch.setattr(launch._thread, "start_new_thread", start)
    counts, slots = np.zeros(50, np.int64), np.zeros(50, np.int64)
    with pytest.raises(RuntimeError, match="can't start"):
        launch.Job(count_calls(), 50, step=1).run(3, counts=address(counts), slots=address(slots))
    done = counts.sum()
    time.sleep(0.01)
    assert counts.sum() == done == 50  # the one that was started did it all
