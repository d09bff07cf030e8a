"""The whole engine on a GPU."""

import asyncio

import pytest

from server.engine import Engine
from server.settings import Settings
from tests.core.recorder import uint8_images
from tocom_core.models import load_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["eager", "graphs", "auto"])
def test_the_engine_answers_as_on_the_cpu(backend: str) -> None:
    """Many batches of several degrees and sizes at once, each as one CPU batch would be."""
    chosen = Settings(device="cuda:0", backend=backend, max_batch_size=8)
    on_cpu = Engine(load_model("default"), None, Settings(device="cpu", backend="eager"))
    on_gpu = Engine(load_model("default"), None, chosen)
    images = uint8_images(8, on_gpu.loaded.input_size)
    jobs = [(images[:count], r) for r in (0, 4, 4, 8, 0) for count in (1, 3, 5, 8)]

    async def serve() -> None:
        await on_gpu.warm_up()
        for _ in range(4):  # graphs are captured on the way
            outcomes = await asyncio.gather(*(on_gpu.run(*job) for job in jobs))
            for (batch, r), outcome in zip(jobs, outcomes, strict=True):
                assert outcome.r == r
                for found, wanted in zip(
                    outcome.outputs, on_cpu.run_blocking(batch, r).outputs, strict=True
                ):
                    assert found == pytest.approx(wanted, abs=1e-3)
        assert await on_gpu.measure(4, 6) > 0

    try:
        asyncio.run(serve())
        assert on_gpu.backend == ("eager" if backend == "eager" else "graphs")
        assert on_gpu.device_identity["backend"] == on_gpu.backend
    finally:
        on_gpu.close()
        on_cpu.close()
