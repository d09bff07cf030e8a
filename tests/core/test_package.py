"""The package as its users import it."""

import subprocess
import sys

import pytest

import tocom_core
from tocom_core import errors


def test_public_names_are_all_there() -> None:
    """Every name of ``__all__`` can be imported, and ``dir`` lists it."""
    for name in tocom_core.__all__:
        assert getattr(tocom_core, name).__name__ == name
    assert set(tocom_core.__all__) <= set(dir(tocom_core))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tocom_core.nothing  # noqa: B018


def test_errors_and_records_need_no_torch() -> None:
    """What the server's queueing and control import does not load torch."""
    code = (
        "import sys, tocom_core, tocom_core.errors, tocom_core.operating_point; "
        "sys.exit(bool({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_errors_stand_in_the_docstring_s_tree() -> None:
    """Every error is a TocomError and is drawn in the module's docstring."""
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    own = [c for c in classes if not issubclass(c, Warning)]
    assert len(own) > 5
    for error in own:
        assert issubclass(error, errors.TocomError)
        assert error.__name__ in (errors.__doc__ or "")
        assert error.__doc__
