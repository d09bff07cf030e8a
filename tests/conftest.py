"""What holds for all tests: no GPU, no GPU tests; and no example fails for having taken long."""

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # busy ones take their time
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` without CUDA; torch is only imported if there are any."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
