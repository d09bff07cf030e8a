"""A lost device: what counts as one, and what becomes of who is there."""

import asyncio

import pytest
import torch

from server.errors import DeviceLost, ForwardFailed
from server.forward import failure_of, is_device_lost
from tests.server.test_app import Bench, kind, model_path, tell

__all__ = ["model_path"]

ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(ILLEGAL),
        torch.AcceleratorError(ILLEGAL),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("HIP error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_what_sticks_to_the_context(error: Exception) -> None:
    """After these every later call fails too."""
    assert is_device_lost(error)
    assert isinstance(failure_of(error), DeviceLost)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError(ILLEGAL),
        MemoryError(),
    ],
)
def test_what_does_not(error: Exception) -> None:
    """Too little memory, and bugs, are over with their batch."""
    assert not is_device_lost(error)
    assert type(failure_of(error)) is ForwardFailed


def test_everybody_is_told_at_once(model_path: str) -> None:
    """In the batch, in the queue, or at the door: 503 of its own type; never ready again."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        bench.engine.error = RuntimeError(ILLEGAL)
        held = [asyncio.create_task(bench.post()) for _ in range(4)]
        await bench.held(4)
        bench.engine.go.set()
        for answer in await asyncio.gather(*held):
            assert kind(answer) == (503, "device-lost")
            assert answer.headers["connection"] == "close"
        assert sum(bench.engine.sizes) == 1, "nothing else was tried on the device"
        assert bench.service.lost.is_set()
        bench.engine.error = None
        assert kind(await bench.post()) == (503, "device-lost")
        assert kind(await bench.client.get("/readyz")) == (503, "device-lost")
        assert (await bench.client.get("/healthz")).status_code == 200
        assert "\ntocom_ready 0.0\n" in (await bench.client.get("/metrics")).text

    tell(model_path, story, max_batch_size=1)


def test_idle_work_notices_too(model_path: str) -> None:
    """Without a request: the cell that is being measured loses the device."""

    async def story(bench: Bench) -> None:
        bench.engine.error = RuntimeError(ILLEGAL)
        await asyncio.wait_for(bench.service.lost.wait(), 20)

    tell(model_path, story, idle_profiling=True)
