"""The GPU's use: where there is none, where the driver answers, and on a real one."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from server.gpu_reading import gpu_reader, utilisation_reader

DRIVER = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{ *device = (void *)42; return strcmp(uuid, "GPU-11-22") != 0; }
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates)
{ rates[0] = 37; rates[1] = 5; return device != (void *)42; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that answers as the driver's does, for one GPU."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a stand-in for the driver with")
    folder: Path = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(DRIVER)
    library = folder / "libnvml.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "nvml.c"], check=True)
    return str(library)


def test_a_processor_is_no_gpu():
    """Nothing is read where the model runs on the CPU."""
    assert gpu_reader([torch.device("cpu"), torch.device("cpu")])() == {}


def test_the_driver_is_asked(driver: str):
    """The driver's percentage is a share here; a GPU that it does not know has none."""
    assert utilisation_reader("11-22", driver)() == pytest.approx(0.37)
    assert utilisation_reader("33-44", driver)() is None


def test_no_driver_is_no_figure():
    """A machine without the driver's library has no figure, and no error."""
    assert utilisation_reader("11-22", "libnothing-of-that-name.so")() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_is_read():
    """Memory in use is within what there is, and grows with what is reserved."""
    tensor = torch.zeros(1 << 20, device="cuda")
    read = gpu_reader([torch.device("cpu"), torch.device("cuda:0")])()
    assert read.keys() == {1}
    use = read[1]
    assert tensor.nbytes <= use.reserved_bytes <= use.used_bytes <= use.total_bytes
    assert use.utilisation is None or 0 <= use.utilisation <= 1
