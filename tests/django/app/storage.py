"""A storage that fails when a test says so."""

from typing import Any

from django.core.files.storage import FileSystemStorage

SECRET = "secret-signature"


class FailingStorage(FileSystemStorage):
    """A file system whose operation named by `fails` raises an error."""

    fails: str | None = None

    def exists(self, name: str) -> bool:
        self._try("exists")
        return super().exists(name)

    def _save(self, name: str, content: Any) -> str:
        self._try("save")
        return super()._save(name, content)  # type: ignore[misc, no-any-return]  # not in the stubs

    def delete(self, name: str) -> None:
        self._try("delete")
        super().delete(name)

    def _try(self, what: str) -> None:
        if self.fails == what:
            raise OSError(f"cannot {what} at https://store.test/?key={SECRET}")
