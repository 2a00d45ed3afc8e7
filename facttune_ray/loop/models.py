"""Models at points of a run, and the digest that tells two models apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.storage import schema
from facttune_ray.storage.folders import Folder


@dataclass(frozen=True)
class Snapshot:
    """A model at one point of the run: "base", "facttune_fs/round_1", "imported"."""

    name: str
    path: str  # Hugging Face folder; "" for imported responses
    fingerprint: str


def model_digest(path: str) -> str:
    """Digest of a model. A local model counts by the names, sizes, first and last megabyte of its
    files, not by its path; a model in an object store by names, sizes and times; a hub id by its
    name."""
    from pyarrow.fs import FileSelector

    if "://" in path:
        source = Folder.of(path)
        files = [source.fs.get_file_info(source.path)]
        if not files[0].is_file:
            files = source.fs.get_file_info(FileSelector(source.path, allow_not_found=True))
        return schema.digest(*sorted((f.base_name, f.size, f.mtime_ns) for f in files if f.is_file))
    folder = Path(path)
    if not folder.exists():
        return schema.digest("hub", path)
    parts: list[object] = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if file.suffix in {".safetensors", ".json", ".bin", ".model", ".gguf"}:
            with file.open("rb") as f:
                head = f.read(2**20)
                f.seek(max(0, file.stat().st_size - 2**20))
                parts += [file.name, file.stat().st_size, schema.digest(head, f.read())]
    if not parts:
        raise UserError(f"model.path={path}: no model files in this folder")
    return schema.digest(*parts)
