"""Names lead into one folder and nowhere else."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.errors import BadParameter
from server.reload_choice import choose, shown
from server.reload_schemas import ReloadRequest
from server.settings import Settings


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models, with things outside of it that are none of a client's business."""
    folder = tmp_path / "models"
    (folder / "rose").mkdir(parents=True)
    for name in ("rose/model.safetensors", "rose/bank.safetensors", "tulip.safetensors"):
        (folder / name).touch()
    (folder / "flowers.txt").touch()
    (folder / "old.pth").touch()
    (tmp_path / "secret.safetensors").touch()
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "inside.safetensors").symlink_to(folder / "tulip.safetensors")
    return folder


def chosen(
    models: Path | None, present: dict[str, object] | None = None, **wish: object
) -> Settings:
    """What a request leads to, from these present settings."""
    configured = Settings(models_dir=models, r_source=4, bank="none")
    now = configured.model_copy(update=present or {})
    return choose(ReloadRequest.model_validate(wish), now, configured)


def test_names_are_found(models: Path) -> None:
    """A file by its stem or in full, or a folder with a model and a bank in it."""
    assert chosen(models, model="tulip").model == str(models / "tulip.safetensors")
    assert chosen(models, model="tulip.safetensors").model == str(models / "tulip.safetensors")
    assert chosen(models, model="rose").model == str(models / "rose/model.safetensors")
    assert chosen(models, bank="rose").bank == str(models / "rose/bank.safetensors")
    assert chosen(models, labels="flowers").labels == models / "flowers.txt"
    assert chosen(models, model="inside").model == str(models / "tulip.safetensors")


@pytest.mark.parametrize("model", ["absent", "link", "old.pth", "old", "rose.safetensors"])
def test_what_is_not_there_is_refused(models: Path, model: str) -> None:
    """Nor is a link that leads outside, nor a pickle."""
    with pytest.raises(BadParameter, match="no such file"):
        chosen(models, model=model)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "", "x" * 129, "a\n"),
        *("hf-hub:owner/name", "local-dir:x", "~", "%2e%2e", "a\0b"),
    ],
)
@pytest.mark.parametrize("field", ["model", "bank", "labels", "architecture"])
def test_nothing_that_is_a_path_is_a_name(field: str, name: str) -> None:
    """No slash, no colon, no leading dot, so neither folders nor the hub."""
    with pytest.raises(ValidationError):
        ReloadRequest.model_validate({field: name})


def test_without_a_folder_there_are_no_names() -> None:
    """Only what the server was started with, and the shipped model."""
    with pytest.raises(BadParameter, match="models-dir"):
        chosen(None, model="rose")
    assert chosen(None).bank == "none"
    assert chosen(None, model="default").model == "default"


def test_another_model_brings_its_own(models: Path) -> None:
    """What belonged to the last one (its bank, its degree) is not taken over to the next."""
    new = chosen(models, {"labels": Path("x"), "scaling": 0.1}, model="rose")
    assert (new.bank, new.r_source, new.labels, new.scaling) == ("auto", None, None, None)
    assert chosen(models, model="rose", r_source=2, bank="none").r_source == 2


def test_what_is_left_out_stays(models: Path) -> None:
    """Another bank for the present model; all else as it is served now, not as configured."""
    new = chosen(models, {"model": "x.safetensors", "r_source": 7}, bank="rose")
    assert (new.model, new.r_source) == ("x.safetensors", 7)


def test_back_to_what_is_configured(models: Path) -> None:
    """By a name of its own."""
    new = chosen(models, {"model": "x.safetensors", "r_source": 7}, model="configured")
    assert (new.model, new.r_source, new.bank) == ("default", 4, "none")


def test_messages_do_not_show_folders(models: Path) -> None:
    """GET /model says which file, not where it lies."""
    new = chosen(models, model="rose")
    assert shown(new, new.model) == "rose/model.safetensors"
    assert shown(new, f"{new.model} is broken") == "rose/model.safetensors is broken"
    other = Settings(model="/srv/private/tulip.safetensors")
    assert shown(other, "cannot read /srv/private/tulip.safetensors") == (
        "cannot read tulip.safetensors"
    )
    from_hub = Settings(bank="hf-hub:me/bank")
    assert shown(from_hub, from_hub.bank) == "hf-hub:me/bank"
