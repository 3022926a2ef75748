"""Device buffers: copies are exact, memory is reused, and everything is freed."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from demi.errors import DeviceError, InferenceError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.buffers import Lane, Lease, Pool, Result
from tests.fake_cuda import CAPTURING, FakeCudart

GPU = Device("cuda", 1)
ANY = arrays.arrays(
    st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]), arrays.array_shapes(min_dims=0, min_side=0)
)


@pytest.fixture
def cudart():
    """Return a fake CUDA runtime with two GPUs."""
    return FakeCudart()


def lane_on(cudart):
    return Lane(Cuda(GPU, cudart))


@given(sent=st.lists(ANY, max_size=4))
def test_round_trip(sent):
    """Any array survives the copy to the device and back, in any dtype, shape and order."""
    lane = lane_on(FakeCudart())
    for array in sent:
        result = Result(lane.send("x", array.T), array.T.shape, array.dtype)

        np.testing.assert_array_equal(array.T, lane.fetch({"x": result})["x"])


def test_a_batch_of_the_same_bucket_allocates_nothing(cudart):
    """Buffers grow in powers of two and are reused: 5 rows fit after 8 rows."""
    lane = lane_on(cudart)
    lane.send("x", np.zeros((8, 100), np.float32))
    lane.send("x", np.zeros((5, 100), np.float32))
    assert 1 == cudart.calls.count("cudaMalloc")

    lane.send("x", np.zeros((9, 100), np.float32))
    lane.send("x", np.zeros((40, 100), np.float32))
    assert (2, 1) == (cudart.calls.count("cudaMalloc"), len(cudart.device))


def test_copies_complete_with_the_stream(cudart):
    """A copy is incomplete until the stream is synchronized."""
    lane = lane_on(cudart)
    address = lane.send("x", np.float32([7]))
    assert bytes(4) == cudart.device[address].raw[:4]

    lane.wait()
    assert np.float32([7]).tobytes() == cudart.device[address].raw[:4]


def test_outputs_are_copies(cudart):
    """Fetched outputs are not changed when the lane's buffers are used again."""
    lane = lane_on(cudart)
    first = lane.fetch({"y": Result(lane.send("y", np.float32([1])), (1,), np.dtype(np.float32))})["y"]
    lane.fetch({"y": Result(lane.send("y", np.float32([2])), (1,), np.dtype(np.float32))})

    assert [1.0] == first.tolist()


def test_a_closed_lane_frees_its_memory(cudart):
    """A closed lane frees its memory and its stream."""
    lane = lane_on(cudart)
    lane.send("x", np.zeros(3))
    lane.close()

    assert ({}, {}, {}) == (cudart.device, cudart.pinned, cudart.streams)


def test_every_call_is_for_the_device_that_was_asked_for(cudart):
    """A thread's current device is set before every call, since each thread has its own."""
    thread = threading.Thread(target=lambda: lane_on(cudart).send("x", np.zeros(3)))
    thread.start()
    thread.join()

    assert {1} == set(cudart.used)


def test_captures_of_other_threads(cudart):
    """A capture in another thread does not prevent allocations in a thread that has opted out of it."""
    cudart.others_capture = True
    assert cudart.cudaMalloc(1)[0] == CAPTURING

    thread = threading.Thread(target=lambda: lane_on(cudart).send("x", np.zeros(3)))
    thread.start()
    thread.join()
    assert cudart.device
    assert cudart.pinned


def test_a_failed_capture_leaves_the_stream_usable(cudart):
    """A failed capture raises its error, discards the graph, and leaves the stream usable."""
    cuda, lane = Cuda(GPU, cudart), lane_on(cudart)
    with pytest.raises(InferenceError, match="CUDA failed"):
        cuda.capture(lane.stream, lambda: lane.wait())
    lane.send("x", np.zeros(3))
    lane.wait()

    assert ({}, set()) == (cudart.recording, cudart.graphs)


@pytest.mark.parametrize("code", [3, 35, 36, 46, 100, 101, 802, 803, 804])
def test_unusable_devices(code):
    """A device or driver that cannot be used raises DeviceError with a hint."""
    with pytest.raises(DeviceError, match="`cuda:1` cannot be used") as caught:
        Cuda(GPU, FakeCudart(failures={"cudaSetDevice": code})).use()
    assert "nvidia-smi" in caught.value.hint


def test_out_of_memory_says_what_to_do():
    """Exhausted device memory raises InferenceError, which names the settings that help."""
    lane = lane_on(FakeCudart(failures={"cudaMalloc": 2}))
    with pytest.raises(InferenceError, match="out of memory on cuda:1") as caught:
        lane.send("x", np.zeros(3))
    assert "--device-memory" in caught.value.hint


class Item:
    """Pool item that records whether it was closed."""

    closed = False

    def close(self):
        self.closed = True


class TestPool:
    """Pool of objects that only one run may use at a time."""

    def test_the_last_returned_is_lent_first(self):
        """The object that was returned last is used next, and none is created while one is idle."""
        pool = Pool(Item, 3)
        first, second = pool.take(), pool.take()
        pool.give(second)
        pool.give(first)

        assert first is pool.take()

    def test_acquiring_beyond_the_limit_waits(self):
        """A third run waits until one of two is finished."""
        pool = Pool(Item, 2)
        first, _ = pool.take(), pool.take()
        got = []
        waiting = threading.Thread(target=lambda: got.append(pool.take()))
        waiting.start()
        assert [] == got

        pool.give(first)
        waiting.join(5)
        assert [first] == got

    def test_an_unused_lease_ends(self):
        """A prepared run that is never started returns its lane."""
        pool = Pool(Item, 1)
        lease = Lease(pool)
        item = lease.item
        del lease

        assert item is pool.take()

    def test_a_lease_ends_where_preparing_fails(self):
        """An error while inputs are copied returns the lane, even if the traceback is kept; else the lease stays."""
        pool = Pool(Item, 1)
        lease = Lease(pool)
        with pytest.raises(ZeroDivisionError), lease:
            raise ZeroDivisionError
        with Lease(pool) as item:
            pass

        assert isinstance(item, Item)

    def test_closing_closes_all(self):
        """Closing the pool closes every object once."""
        pool = Pool(Item, 2)
        item = pool.take()
        pool.give(item)
        pool.close()

        assert item.closed
