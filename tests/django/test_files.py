"""Images end with their rows, and no storage costs a job its image or keeps a second copy."""

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone
from PIL import Image

from imagelabs_sdk.contrib.django.lifecycle import advance, claim, record_result
from imagelabs_sdk.contrib.django.models import ImageJob, JobState, LeftoverFile
from imagelabs_sdk.contrib.django.poll import poll
from imagelabs_sdk.provenance import SourceType, read_provenance, with_provenance
from imagelabs_sdk.testing import FakeService
from tests.django.app.models import Draft, Framed, Poster
from tests.django.app.storage import FailingStorage
from tests.django.fixtures import ALIASES, IMAGE, PROMPT, due, files, stored

pytestmark = pytest.mark.django_db(transaction=True)
every_database = pytest.mark.django_db(transaction=True, databases=["default", *ALIASES])


def large_image(mode: str = "RGB", size: tuple[int, int] = (1200, 800)) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size, "teal").save(data, "PNG")
    return data.getvalue()


LARGE = large_image()


@pytest.fixture
def service(service: FakeService, media: Path) -> FakeService:
    return service.done(LARGE)


def finished(model: type[ImageJob] | type[Poster] = ImageJob, **columns: Any) -> Any:
    job = due(model.objects.start(PROMPT, **columns))
    assert advance(job)
    assert job.state == JobState.DONE
    return job


def prune(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    call_command("imagelabs_prune", *arguments)
    return capsys.readouterr().out.strip()


# Deleting ---------------------------------------------------------------------------------


def delete_row(job: ImageJob) -> None:
    job.delete()


def delete_query(job: ImageJob) -> None:
    ImageJob.objects.filter(pk=job.pk).delete()


def delete_owner(job: ImageJob) -> None:
    User.objects.all().delete()


@pytest.mark.parametrize("delete", [delete_row, delete_query, delete_owner])
def test_an_image_is_deleted_with_its_row(
    delete: Callable[[ImageJob], None], service: FakeService, media: Path
) -> None:
    """Whoever deletes an account or a job wants nothing of it kept; its thumbnail included."""
    job = finished(owner=User.objects.create_user("visitor"))
    assert len(files(media)) == 2
    delete(job)
    assert files(media) == []


@pytest.mark.parametrize("model", [Poster, Framed, Draft])
def test_an_image_of_a_sites_own_model_is_deleted_with_its_row(
    model: type[Poster], service: FakeService, media: Path
) -> None:
    """Also through a table that is shared, and through a proxy."""
    job = finished(Framed if model is Framed else Poster, title="The Pier")
    model.objects.get(pk=job.pk).delete()
    assert files(media) == []


def test_a_row_that_is_not_deleted_after_all_keeps_its_image(
    service: FakeService, media: Path
) -> None:
    """A file cannot be rolled back."""
    job = finished()
    with suppress(ZeroDivisionError), transaction.atomic():
        job.delete()
        raise ZeroDivisionError
    assert len(files(media)) == 2


def test_an_image_that_another_row_uses_is_kept_until_that_is_deleted(
    service: FakeService, media: Path
) -> None:
    """A site may copy rows."""
    job = finished()
    copy = ImageJob.objects.get(pk=job.pk)
    copy.pk = uuid4()
    copy.save(force_insert=True)
    job.delete()
    assert len(files(media)) == 2
    copy.delete()
    assert files(media) == []


def test_a_storage_that_fails_does_not_keep_the_row_and_is_tried_again(
    service: FakeService, media: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """Its file is remembered by name, and deleted by the next prune that can."""
    job = finished()
    FailingStorage.fails = "delete"
    job.delete()
    assert not ImageJob.objects.exists()
    assert len(files(media)) == LeftoverFile.objects.count() == 2
    assert "cannot be deleted" in caplog.text
    assert "store.test" not in caplog.text
    with pytest.raises(CommandError, match="2 files"):
        prune(capsys)
    FailingStorage.fails = None
    prune(capsys)
    assert files(media) == []
    assert not LeftoverFile.objects.exists()


def test_a_leftover_file_that_a_new_row_uses_is_kept(
    service: FakeService, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that was restored from a backup, say."""
    job = finished()
    FailingStorage.fails = "delete"
    kept = ImageJob.objects.get(pk=job.pk)
    job.delete()
    FailingStorage.fails = None
    kept.save(force_insert=True)
    prune(capsys)
    assert len(files(media)) == 2
    assert not LeftoverFile.objects.exists()


# Orphans ----------------------------------------------------------------------------------


@every_database
def test_orphans_are_listed_and_deleted_only_when_asked_for(
    service: FakeService, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of a process that was killed between the commit and the storage."""
    kept = finished()
    running = ImageJob.objects.start(PROMPT)
    folder = media / "imagelabs" / "ab"
    folder.mkdir(parents=True)
    orphan = folder / f"{uuid4()}.png"
    foreign = folder / "logo.png"
    being_stored = folder / f"{running.pk}.png"
    for path in (orphan, foreign, being_stored):
        path.write_bytes(IMAGE)
    said = prune(capsys, "--orphans")
    assert said.splitlines() == [
        f"imagelabs/ab/{orphan.name}",
        "1 files that no row names; --delete deletes them",
    ]
    assert orphan.exists()
    assert "1 files deleted" in prune(capsys, "--orphans", "--delete")
    assert not orphan.exists()
    assert foreign.exists()
    assert being_stored.exists()
    assert Path(kept.image.path).exists()
    assert Path(kept.thumbnail.path).exists()


@every_database
def test_orphans_that_cannot_be_deleted_are_an_error(
    service: FakeService, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cron sends a mail."""
    FailingStorage.fails = "delete"
    folder = media / "imagelabs" / "ab"
    folder.mkdir(parents=True)
    (folder / f"{uuid4()}.png").write_bytes(IMAGE)
    with pytest.raises(CommandError, match="1 files cannot"):
        prune(capsys, "--orphans", "--delete")


@every_database
def test_a_storage_without_images_has_no_orphans(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the first day there is no folder."""
    assert prune(capsys, "--orphans").startswith("0 files")


def test_delete_alone_is_refused() -> None:
    """It would be taken for something else."""
    with pytest.raises(CommandError, match="--orphans"):
        call_command("imagelabs_prune", "--delete")


# Storing ----------------------------------------------------------------------------------


def left_by_a_killed_process(job: ImageJob, media: Path, data: bytes) -> Path:
    path = media / "imagelabs" / job.pk.hex[:2] / f"{job.pk}.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_a_storage_that_cannot_delete_costs_no_job_its_image(
    service: FakeService, media: Path
) -> None:
    """It gives the image another name."""
    job = due(ImageJob.objects.start(PROMPT))
    left_by_a_killed_process(job, media, LARGE[:20])
    FailingStorage.fails = "delete"
    assert advance(job)
    assert job.state == JobState.DONE
    assert job.image.read() == LARGE
    job.image.close()


def test_a_copy_that_a_killed_process_left_is_used(
    service: FakeService, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored twice, also where nothing can be deleted."""
    job = due(ImageJob.objects.start(PROMPT))
    left = left_by_a_killed_process(job, media, LARGE)
    FailingStorage.fails = "delete"
    assert advance(job)
    assert stored(media) == [left]


def test_another_file_of_the_same_size_is_replaced(service: FakeService, media: Path) -> None:
    """A size says little."""
    job = due(ImageJob.objects.start(PROMPT))
    left_by_a_killed_process(job, media, b"x" * len(LARGE))
    assert advance(job)
    assert [path.read_bytes() for path in stored(media)] == [LARGE]


def test_a_storage_that_cannot_read_replaces_what_is_there(
    service: FakeService, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some may only write."""

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(FailingStorage, "size", refuse)
    job = due(ImageJob.objects.start(PROMPT))
    left_by_a_killed_process(job, media, LARGE)
    assert advance(job)
    assert [path.read_bytes() for path in stored(media)] == [LARGE]


class RenamingStorage(FileSystemStorage):
    """Gives each file a name of its own."""

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        path = Path(name)
        return str(path.with_name(f"{path.stem}-{uuid4().hex[:6]}{path.suffix}"))


@pytest.fixture
def renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailingStorage, "get_available_name", RenamingStorage.get_available_name)


def test_a_storage_that_renames_keeps_one_copy(
    service: FakeService, media: Path, renaming: None
) -> None:
    """The process that lost its lease deletes what it has stored."""
    job = due(ImageJob.objects.start(PROMPT))
    claimed = claim(job)
    assert claimed is not None
    late = poll(claimed, timeout=5)
    other = due(job)  # the lease has ended
    assert advance(other)
    assert len(files(media)) == 4
    assert not record_result(job, late)
    assert {path.name for path in files(media)} == {
        Path(str(name)).name for name in (other.image.name, other.thumbnail.name)
    }


def test_a_copy_under_the_jobs_own_name_is_kept_for_the_next_step(
    service: FakeService, media: Path
) -> None:
    """The other process is about to name it in the row."""
    job = due(ImageJob.objects.start(PROMPT))
    claimed = claim(job)
    assert claimed is not None
    late = poll(claimed, timeout=5)
    other = due(job)
    assert claim(other) is not None
    assert not record_result(job, late)
    assert len(stored(media)) == 1


# Thumbnails -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "thumbnail_mode"), [("RGB", "RGB"), ("RGBA", "RGBA"), ("L", "RGB"), ("I;16", "RGB")]
)
def test_a_thumbnail_is_made_once_and_stored_beside_the_image(
    mode: str, thumbnail_mode: str, service: FakeService
) -> None:
    """A list of full images would be megabytes."""
    data = io.BytesIO()
    Image.new(mode, (1200, 800)).save(data, "PNG")
    service.job().done(data.getvalue())
    job = finished()
    with Image.open(job.thumbnail) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (512, 341))
        assert thumbnail.mode == thumbnail_mode
    job.thumbnail.close()
    assert job.thumbnail.name == f"imagelabs/{job.pk.hex[:2]}/{job.pk}-thumbnail.webp"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_thumbnail_is_marked_as_machine_made_as_its_image_is(
    kind: str, service: FakeService
) -> None:
    """The mark must not be lost by making the image smaller."""
    data = io.BytesIO()
    Image.new("RGB", (1200, 800)).save(data, kind)
    info = {"engine": "landscape", "seed": 7}
    service.job().done(with_provenance(data.getvalue(), SourceType.ALGORITHMIC, info))
    job = finished()
    found = read_provenance(job.thumbnail.read())
    job.thumbnail.close()
    assert found is not None
    assert (found.source_type, found.info) == ("algorithmicMedia", info)


def test_a_mark_of_megabytes_is_left_out(service: FakeService) -> None:
    """A service may write anything there; a list shows dozens of thumbnails."""
    data = io.BytesIO()
    Image.new("RGB", (1200, 800)).save(data, "WEBP", xmp=bytes(70_000))
    service.job().done(data.getvalue())
    assert finished().thumbnail.size < 20_000


def test_a_small_image_needs_no_thumbnail(service: FakeService) -> None:
    """It is as small as one."""
    service.job().done(large_image(size=(512, 512)))
    assert not finished().thumbnail


def test_an_image_that_pillow_cannot_read_is_kept(service: FakeService, media: Path) -> None:
    """The image was paid for; a thumbnail is a convenience."""
    broken = bytearray(LARGE)
    broken[60:80] = bytes(20)
    service.job().done(bytes(broken))
    job = finished()
    assert job.image.read() == bytes(broken)
    job.image.close()
    assert not job.thumbnail


def test_without_pillow_there_are_images_and_no_thumbnails(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is optional."""
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert not finished().thumbnail


def test_a_thumbnail_that_cannot_be_stored_costs_nothing(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The image is there."""
    save = FailingStorage._save

    def fails(storage: FailingStorage, name: str, content: Any) -> str:
        if "thumbnail" in name:
            raise OSError("full")
        return save(storage, name, content)

    monkeypatch.setattr(FailingStorage, "_save", fails)
    assert not finished().thumbnail
    assert "thumbnail could not be stored" in caplog.text


def test_a_thumbnail_of_an_earlier_attempt_is_replaced(service: FakeService, media: Path) -> None:
    """There is one for each job."""
    job = due(ImageJob.objects.start(PROMPT))
    name = f"imagelabs/{job.pk.hex[:2]}/{job.pk}-thumbnail.webp"
    job.thumbnail.storage.save(name, ContentFile(b"old"))
    assert advance(job)
    assert job.thumbnail.name == name
    assert job.thumbnail.read() != b"old"
    job.thumbnail.close()
    assert timezone.now() > job.finished_at  # type: ignore[operator]
    assert len(files(media)) == 2
