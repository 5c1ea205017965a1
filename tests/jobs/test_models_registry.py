"""Models that operators register: looked at, kept, named by jobs, checked again at every load."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import boto3
import environ
import pytest
import torch
from django.contrib.auth.models import Permission
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.test import Client

from jobs import networks, types
from jobs.imaging.contract import BadInput
from jobs.imaging.weights import MissingWeights
from jobs.models import SegmentationModel
from jobs.networks import Facts
from jobs.types import cell_segmentation
from labsched import checks, environment
from tenants.models import User
from tests import factories
from tests.api.conftest import by_header, house  # noqa: F401 - a private data folder
from workflows import submission

pytestmark = pytest.mark.django_db
CELLS = types.get("cell_segmentation")
FACTS = Facts(["nuclei"], 0.5, 3, "Equal.")


class NoModel(torch.nn.Module):
    """TorchScript that is no InstanSeg."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="session")
def published() -> Path:
    """The published brightfield model."""
    return cell_segmentation.weights().path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A file that is no InstanSeg model."""
    torch.jit.script(NoModel()).save(tmp_path / "other.pt")
    return tmp_path / "other.pt"


@pytest.fixture
def kept(tmp_path: Path) -> SegmentationModel:
    """A registered model; what its file holds nobody looks at here."""
    (tmp_path / "instanseg.pt").write_bytes(b"weights")
    return networks.keep("ours", "1", tmp_path / "instanseg.pt", FACTS)


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


def faults(model: str) -> str:
    return " ".join(types.check_params(CELLS, {"model": model}))


# --- what jobs may say --------------------------------------------------------------------


def test_a_job_names_published_and_registered_models(kept: SegmentationModel) -> None:
    for name in ("brightfield_nuclei", "fluorescence_nuclei_and_cells", "ours", "ours:1"):
        assert faults(name) == ""


@pytest.mark.parametrize("name", ["theirs", "ours:2", "", "brightfield_nuclei:9", "../ours"])
def test_another_name_is_refused_and_those_there_are_told(
    kept: SegmentationModel, name: str
) -> None:
    job = {"job_id": "a", "job_type": "cell_segmentation", "params": {"model": name}}
    answer = by_header("new").post("/api/workflows", {"name": "n", "jobs": [job]})
    assert answer.status_code == 400
    told = str(answer.json())
    assert "brightfield_nuclei, fluorescence_nuclei_and_cells, ours:1" in told


def test_a_name_alone_is_the_version_that_came_last(
    kept: SegmentationModel, tmp_path: Path
) -> None:
    (tmp_path / "instanseg.pt").write_bytes(b"better weights")
    second = networks.keep("ours", "2", tmp_path / "instanseg.pt", FACTS)
    found = cell_segmentation.weights({"model": "ours"})
    assert (found.version, found.sha256) == ("2", second.sha256)
    assert found.path.read_bytes() == b"better weights"
    assert cell_segmentation.weights({"model": "ours:1"}).sha256 == kept.sha256


def test_a_disabled_model_is_none(kept: SegmentationModel) -> None:
    SegmentationModel.objects.update(enabled=False)
    assert "There is no model 'ours'" in faults("ours")
    with pytest.raises(BadInput, match="There is no model 'ours'"):
        cell_segmentation.weights({"model": "ours"})


def test_a_job_keeps_the_version_that_its_name_meant_when_it_came(
    kept: SegmentationModel, settings: Any
) -> None:
    slide = {"image_path": "cells.tif"}
    jobs = [
        {"job_id": name, "job_type": "cell_segmentation", **slide, "params": {"model": name}}
        for name in ("ours", "brightfield_nuclei")
    ]
    tenant = factories.tenant()
    (settings.SLIDE_ROOT / "cells.tif").write_bytes(b"opened by nobody here")
    flow = submission.submit(tenant, {"name": "n", "jobs": jobs})
    of = {key: job.params["model"] for key, job in factories.jobs_of(flow).items()}
    assert of == {"ours": "ours:1", "brightfield_nuclei": "brightfield_nuclei"}
    SegmentationModel.objects.update(enabled=False)
    assert cell_segmentation.weights({"model": of["ours"]}).sha256 == kept.sha256
    assert "There is no model 'ours:1'" in faults("ours:1")


def test_a_file_that_changed_or_went_is_an_error(kept: SegmentationModel) -> None:
    path = cell_segmentation.weights({"model": "ours"}).path
    path.write_bytes(b"WEIGHTS")
    with pytest.raises(MissingWeights, match="is not the one that was registered"):
        cell_segmentation.weights({"model": "ours"})
    path.unlink()
    with pytest.raises(MissingWeights, match="is gone from the storage"):
        cell_segmentation.weights({"model": "ours"})


def test_a_model_in_a_bucket_is_copied_once_and_checked(
    s3_server: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "STORAGE_URL": "s3://models-of/lab",
    }.items():
        monkeypatch.setenv(name, value)
    settings.STORAGES = environment.storages(environ.Env(), tmp_path, debug=True)
    settings.LABSCHED_CACHE = tmp_path / "cache"
    bucket = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="models-of")
    for name in ("instanseg.pt", "rdf.yaml"):
        (tmp_path / name).write_text(name)
    networks.keep("ours", "1", tmp_path / "instanseg.pt", FACTS)
    path = cell_segmentation.weights({"model": "ours"}).path
    assert {each.name for each in path.parent.iterdir()} == {"instanseg.pt", "rdf.yaml"}
    path.write_text("damaged")
    assert cell_segmentation.weights({"model": "ours"}).path.read_text() == "instanseg.pt"
    bucket.objects.all().delete()
    assert cell_segmentation.weights({"model": "ours"}).path == path
    path.unlink()
    with pytest.raises(MissingWeights, match="is gone from the storage"):
        cell_segmentation.weights({"model": "ours"})


def test_the_models_are_listed_for_every_tenant(kept: SegmentationModel) -> None:
    answer = by_header("new").get("/api/models")
    assert [row["name"] for row in answer.json()] == [
        "brightfield_nuclei",
        "fluorescence_nuclei_and_cells",
        "ours",
    ]
    ours = {"name": "ours", "version": "1", "outputs": ["nuclei"], "mpp": 0.5, "channels": 3}
    assert answer.json()[-1] == ours
    assert Client().get("/api/models").status_code == 401


# --- registering --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version", "sentence"),
    [
        ("ours", "1", "registered already"),
        ("Ours!", "1", "is no name"),
        ("ours", "..", "is no name"),
        ("brightfield_nuclei", "2", "is a published model"),
    ],
)
def test_a_name_that_can_not_be_had_is_told(
    kept: SegmentationModel, name: str, version: str, sentence: str
) -> None:
    with pytest.raises(networks.Refused, match=sentence):
        networks.check_name(name, version)


def test_a_command_registers_a_real_model_and_says_what_it_is(published: Path) -> None:
    told = StringIO()
    call_command("register_model", published, "--name", "ours", "--release", "2024.1", stdout=told)
    row = SegmentationModel.objects.get()
    assert told.getvalue().startswith("ours:2024.1: nuclei at 0.5 µm per pixel.")
    assert (row.outputs, row.pixel_size, row.channels) == (["nuclei"], 0.5, 3)
    assert row.parity == "Against its own code, on its test tensors: 336 nuclei for 336 (F1 1.000)."
    assert row.sha256 == cell_segmentation.weights().sha256


def test_what_is_no_model_is_refused_with_a_sentence(other: Path, tmp_path: Path) -> None:
    for path in (other, tmp_path / "nowhere.pt"):
        with pytest.raises(CommandError, match=f"{path.name} .*give an InstanSeg TorchScript file"):
            call_command("register_model", path, "--name", "ours")
    assert not SegmentationModel.objects.exists()
    assert not (tmp_path / "models").exists()


def test_a_model_that_does_not_come_to_an_end_is_stopped(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.networks.LOOK_S", 0.1)
    with pytest.raises(networks.Refused, match=r"was not loaded and run within 0\.1 s"):
        networks.look(published)


# --- the admin ----------------------------------------------------------------------------

ADD = "/admin/jobs/segmentationmodel/add/"


def upload(path: Path) -> SimpleUploadedFile:
    return SimpleUploadedFile(path.name, path.read_bytes())


def test_an_operator_adds_a_model_in_the_admin(root: Client, published: Path) -> None:
    body: dict[str, Any] = {"name": "ours", "version": "1", "file": upload(published)}
    answer = root.post(ADD, body)
    assert answer.status_code == 302, answer.content.decode()
    row = SegmentationModel.objects.get()
    assert (str(row), row.added_by.username) == ("ours:1", "root")  # type: ignore[union-attr]
    assert cell_segmentation.weights({"model": "ours"}).sha256 == row.sha256
    assert root.get(f"/admin/jobs/segmentationmodel/{row.pk}/change/").status_code == 200


def test_what_the_admin_refuses_is_said_on_the_page(root: Client, other: Path) -> None:
    answer = root.post(ADD, {"name": "ours", "version": "1", "file": upload(other)})
    assert "is not an InstanSeg" in answer.content.decode()
    assert not SegmentationModel.objects.exists()


def test_a_model_is_switched_off_and_on(root: Client, kept: SegmentationModel) -> None:
    for action, enabled in (("disable", False), ("enable", True)):
        body = {"action": action, "_selected_action": [kept.pk]}
        root.post("/admin/jobs/segmentationmodel/", body, follow=True)
        kept.refresh_from_db()
        assert kept.enabled is enabled


def test_staff_who_are_no_superusers_add_and_switch_none(
    client: Client, kept: SegmentationModel
) -> None:
    ann = User.objects.create_user("ann", is_staff=True)
    ann.user_permissions.set(Permission.objects.filter(content_type__model="segmentationmodel"))
    client.force_login(ann)
    assert client.get(ADD).status_code == 403
    assert client.get("/admin/jobs/segmentationmodel/").status_code == 200
    body = {"action": "disable", "_selected_action": [kept.pk]}
    client.post("/admin/jobs/segmentationmodel/", body, follow=True)
    change = f"/admin/jobs/segmentationmodel/{kept.pk}/change/"
    assert client.post(change, {"enabled": ""}).status_code == 403
    kept.refresh_from_db()
    assert kept.enabled


def test_a_name_that_was_taken_at_the_last_moment_is_told(
    root: Client, kept: SegmentationModel, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = networks.keep

    def slow(*args: Any, **kwargs: Any) -> SegmentationModel:
        keep("theirs", "1", other, FACTS)
        return keep(*args, **kwargs)

    monkeypatch.setattr(networks, "look", lambda source: FACTS)
    monkeypatch.setattr(networks, "keep", slow)
    answer = root.post(ADD, {"name": "theirs", "version": "1", "file": upload(other)}, follow=True)
    assert answer.status_code == 200
    (told,) = map(str, answer.context["messages"])
    assert told.startswith("theirs:1 was registered meanwhile")


# --- settings -----------------------------------------------------------------------------


def test_a_setting_that_names_no_model_is_told(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "instanseg.pt").write_text("<html>not found</html>")
    settings.INSTANSEG_MODEL = str(tmp_path / "instanseg.pt")
    (found,) = checks.model()
    assert found.id == "labsched.E003"
    assert "is no TorchScript file" in found.msg
