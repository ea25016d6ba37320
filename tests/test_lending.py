"""Memory of large results: lent, taken back, bounded; and results that share none while they live."""

import gc
import threading

import numpy as np
import pytest

import konv
from konv import lending
from konv.engine import memory
from konv.engine.memory import release

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    release()
    yield
    release()


def kept():
    return lending.kept()


def lent(mebibytes):
    return lending.empty((mebibytes * MIB,), np.uint8)


def test_small_arrays_are_those_of_numpy():
    assert lending.empty((7,), np.float32).base is None
    assert kept() == 0


@pytest.mark.parametrize(
    "shape, dtype", [((3, 5, 70_001), np.float32), ((600, 301), np.float64), ((1 << 20,), np.float16)]
)
def test_a_lent_array_is_an_ordinary_array(shape, dtype):
    array = lending.empty(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
    assert array.ctypes.data % lending.LINE == 0
    array[...] = 1
    assert array.sum(dtype=np.float64) == array.size


@pytest.mark.parametrize("offset", [0, 16, 48, 64, 2048, 4000])
def test_beside_another_it_begins_half_a_page_apart(offset):
    base = np.empty(3 * MIB, np.uint8)
    other = base[-base.ctypes.data % lending.PAGE + offset :][: 2 * MIB]
    array = lending.empty(other.shape, other.dtype, other.ctypes.data)
    apart = (array.ctypes.data - other.ctypes.data) % lending.PAGE
    assert array.ctypes.data % lending.LINE == 0 and lending.PAGE // 2 - lending.LINE < apart <= lending.PAGE // 2
    array[...] = 1
    assert array.sum(dtype=np.int64) == array.size
    where = array.ctypes.data
    del array
    assert lending.empty(other.shape, other.dtype, other.ctypes.data).ctypes.data == where


def test_memory_comes_back_when_the_last_view_is_gone():
    array = lent(4)
    where, view = array.ctypes.data, array[5:10]
    del array
    assert kept() == 0 and lent(4).ctypes.data != where
    del view
    assert kept() >= 4 * MIB
    again = lent(4)
    while again.ctypes.data != where:  # one of the two that came back
        other, again = again, lent(4)
        assert other.ctypes.data != again.ctypes.data


def test_two_results_that_live_share_nothing():
    arrays = [lent(2) for _ in range(5)]
    for i, array in enumerate(arrays):
        array[:] = i
    del arrays[1::2]
    arrays += [lent(2) for _ in range(5)]
    for i, array in enumerate(arrays):
        array[:] = i
    assert [int(array[0]) for array in arrays] == [int(array[-1]) for array in arrays] == list(range(len(arrays)))


def test_no_more_is_kept_than_was_in_use_at_one_time():
    most = 0
    for size in (3, 30, 7, 12, 50, 2, 49, 20):
        lent(size)
        most = max(most, size)
        assert kept() <= most * MIB + lending.LINE
    together = [lent(20) for _ in range(3)]
    del together
    assert 55 * MIB < kept() <= 61 * MIB
    one = lent(40)  # fits none: some are dropped for it
    assert kept() + one.nbytes <= 61 * MIB
    release()
    assert kept() == 0


def test_a_gibibyte_at_most_is_kept(monkeypatch):
    monkeypatch.setattr(lending, "KEPT_BYTES", 10 * MIB)
    many = [lent(3) for _ in range(6)]
    assert len({array.ctypes.data for array in many}) == 6
    del many
    assert 8 * MIB < kept() <= 10 * MIB


def test_little_of_a_block_is_left_unused():
    both = [lent(8) for _ in range(2)]
    where = {array.ctypes.data for array in both}
    del both
    small = lent(4)
    assert small.nbytes == 4 * MIB and kept() >= 8 * MIB  # of a block of its own, in the place of one of theirs
    assert lent(8).ctypes.data in where


def test_an_array_that_dies_while_the_lock_is_held_comes_back():
    """As where Python's collector runs inside the accounts."""
    array = lent(2)
    with lending._lock:
        del array
    assert kept() >= 2 * MIB and lending.lent() == 0


@pytest.mark.parametrize(
    "holder", [memoryview, lambda a: a.T[1:], lambda a: a.view(np.float32), lambda a: a.reshape(-1, 2)]
)
def test_whatever_refers_to_an_array_keeps_it(holder):
    array = lent(2)
    held = holder(array)
    del array
    assert kept() == 0 and lending.lent() >= 2 * MIB
    del held
    assert kept() >= 2 * MIB and lending.lent() == 0


def test_a_finaliser_that_asks_while_the_lock_is_held_gets_an_array():
    with lending._lock:
        array = lent(2)
    array[:] = 1
    assert array.sum() == 2 * MIB and lending.lent() == 0


@pytest.mark.parametrize("inside", ["_take", "_lent", "_forget"])
def test_a_finaliser_that_releases_while_the_accounts_are_in_use_does_not_wait(monkeypatch, inside):
    """Python's collector may run it on the thread that uses them, which releases when it is done."""
    function, held = getattr(lending, inside), []

    def interrupted(*arguments):
        if not held:
            held.append(lending._lock.locked())
            lending.release()
        return function(*arguments)

    array = lent(2)
    del array
    assert kept() >= 2 * MIB
    monkeypatch.setattr(lending, inside, interrupted)
    result = {"_take": lambda: lent(3), "_lent": lending.lent, "_forget": lending.release}[inside]()
    assert held == [True]
    monkeypatch.undo()
    assert kept() == 0
    del result


@pytest.mark.parametrize("inside", ["copy", "append", "pop", "remove"])
def test_a_finaliser_that_borrows_and_releases_while_a_workspace_is_borrowed_does_not_wait(monkeypatch, inside):
    class Interrupted(list):
        def finaliser(self):
            if not ran:
                ran.append(True)
                memory.release()
                with memory.workspace(50 * MIB):
                    memory.release()

    def method(self, *arguments):
        self.finaliser()
        return getattr(list, inside)(self, *arguments)

    ran = []
    setattr(Interrupted, inside, method)
    with memory.workspace(MIB), memory.workspace(50 * MIB):
        pass
    monkeypatch.setattr(memory, "_free", Interrupted(memory._free))
    with memory.workspace(40 * MIB), memory.workspace(30 * MIB), memory.workspace(60 * MIB):
        pass
    assert ran and sum(buffer.size for buffer in memory._free) <= memory.KEPT_BYTES
    memory.release()


def test_many_threads():
    """Every array keeps what its own thread wrote."""
    wrong = []

    def work(number):
        rng = np.random.default_rng(number)
        for _ in range(50):
            array = lent(int(rng.integers(1, 4)))
            array[:: 1 << 12] = number
            if (array[:: 1 << 12] != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    lent(1)
    assert not wrong and lending.lent() == 0
    assert kept() <= 6 * 2 * (3 * MIB + lending.LINE)  # the old one and the new


def test_results_of_operations_are_lent_and_their_values_stay():
    x, w = np.ones((4, 8, 100, 100), np.float32), np.ones((8, 8, 1, 1), np.float32)
    first = konv.conv(x, w)
    second = konv.conv(x, w * 2)
    assert (first == 8).all() and (second == 16).all()
    where = first.ctypes.data
    del first
    assert konv.conv(x, w * 3).ctypes.data == where
    assert (second == 16).all()


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_tensors(layout):
    torch = pytest.importorskip("torch")
    from konv.torch import functional

    layout = getattr(torch, layout)
    x = torch.ones(4, 8, 300, 300).contiguous(memory_format=layout).requires_grad_()
    w = torch.ones(8, 8, 1, 1)
    y = functional.conv2d(x, w)
    where, view = y.data_ptr(), y.detach()[1]
    assert y.is_contiguous(memory_format=layout) and not y._is_view()
    y.relu_().sum().backward()  # in place, as networks do
    assert (x.grad == 8).all() and (y == 8).all()
    del y
    assert functional.conv2d(x.detach(), w).data_ptr() != where
    del view
    gc.collect()
    results = [functional.conv2d(x.detach(), w) for _ in range(2)]
    assert where in [result.data_ptr() for result in results]
