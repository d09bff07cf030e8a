"""What numbers a model computes with."""

from collections.abc import Iterator

import pytest
import torch

from tocom_core.errors import DeviceError
from tocom_core.precision import PRECISIONS, use_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """These are settings of the whole process."""
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = conv


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_cpu_has_all_but_tf32(name: str) -> None:
    """Each is its own type, and nothing of the process is changed."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    assert use_precision(name, CPU).dtype == getattr(torch, name)  # type: ignore[arg-type]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_tf32_on_a_cpu_is_refused() -> None:
    """It would be float32 without a word."""
    with pytest.raises(DeviceError, match=r"dtype='tf32' on device 'cpu'.*use dtype float32"):
        use_precision("tf32", CPU)


def test_tf32_on_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, with what the device has."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(DeviceError, match=r"needs compute capability 8\.0, this device has 7\.5"):
        use_precision("tf32", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert use_precision("tf32", torch.device("cuda:0")).tf32


@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_float32_on_cuda_is_exact_in_convolutions_too(name: str) -> None:
    """PyTorch would let cuDNN round their inputs by default."""
    PRECISIONS[name].apply(torch.device("cuda:0"))
    rounds = name == "tf32"
    assert torch.backends.cudnn.allow_tf32 is rounds
    assert torch.get_float32_matmul_precision() == ("high" if rounds else "highest")


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "low", "high"), [("float32", 0, 1e-6), ("tf32", 1e-5, 2e-3)])
def test_products_on_a_gpu_are_as_exact_as_they_say(name: str, low: float, high: float) -> None:
    """float32 is float32, and TF32 is really used: the error tells them apart."""
    device = torch.device("cuda")
    use_precision(name, device)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator, dtype=torch.float64) for _ in range(2))
    found = (a.float().to(device) @ b.float().to(device)).double().cpu()
    exact = a.float().double() @ b.float().double()
    error = float((found - exact).abs().max() / exact.abs().max())
    assert low <= error <= high
