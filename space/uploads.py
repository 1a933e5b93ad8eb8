"""Upload fields that hand over the path and the visitor's file name, and never fetch anything for a visitor."""

from pathlib import Path

import gradio as gr
from gradio.data_classes import FileData, ListFiles
from gradio_client.utils import is_http_url_like

from answers import Photo

MAX_NAME_CHARS = 120


class PhotoFile(gr.File):
    """One file. gradio's own field would download an address sent in place of a file, and leave an empty file behind."""

    is_template = True  # not a component with a frontend of its own …

    def get_block_name(self) -> str:
        """Be drawn by gradio's File."""
        return "file"

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """Keep an upload where it is.

        Raises:
            gr.Error: If an address was sent in place of a file.
        """
        if url_or_file_path is not None and is_http_url_like(str(url_or_file_path)):
            raise gr.Error("This server fetches nothing for visitors: send the file itself, not its address.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload: ListFiles | FileData | None) -> Photo | None:
        """Return the upload, its name shortened."""
        return None if payload is None else as_photo(payload if isinstance(payload, FileData) else payload.root[0])


class PhotoFiles(PhotoFile):
    """Several files."""

    def preprocess(self, payload: ListFiles | FileData | None) -> list[Photo]:
        """Return the uploads, their names shortened."""
        files = [] if payload is None else payload.root if isinstance(payload, ListFiles) else [payload]
        return [as_photo(file) for file in files]


def as_photo(file: FileData) -> Photo:
    """Name the file as the visitor did; gradio's path has other characters."""
    name = Path(file.orig_name or file.path).name
    printable = "".join(character if character.isprintable() else "�" for character in name)
    return Photo(path=file.path, name=printable[:MAX_NAME_CHARS] or "photo")
