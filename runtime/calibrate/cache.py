"""The calibration cache: ranges by method, kept in a file that belongs to one model and data."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.serialization import model_bytes
from onnxfold.runtime.report.write import write_text

_FORMAT = "onnxfold-calibration-cache"
_VERSION = 1
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile)
_NO_CACHE = (UsageError, *_UNREADABLE)


@dataclass(frozen=True)
class CalibrationCache:
    """Ranges that were found before, by the textual form of the method.

    Attributes:
        path: Where they are kept (``.npz``, else JSON); None keeps them in memory only.
        model_sha256: Of the model that was observed.
        data_sha256: Of the data it was observed on.
    """

    path: Path | None = None
    model_sha256: str = ""
    data_sha256: str = ""
    _methods: dict[str, Ranges] = field(default_factory=dict[str, Ranges])

    @classmethod
    def open(
        cls, path: Path, model: ir.Model, feeds: Iterable[Mapping[str, Any]]
    ) -> CalibrationCache:
        """The cache at ``path``, empty where there is no file yet.

        Args:
            path: The file.
            model: The very model that will be observed.
            feeds: The data it will be observed on; read once.

        Raises:
            UsageError: The file is no cache, or belongs to another model or other data.
        """
        hashes = {
            "model_sha256": hashlib.sha256(model_bytes(model)).hexdigest(),
            "data_sha256": data_hash(feeds),
        }
        cache = cls(path, hashes["model_sha256"], hashes["data_sha256"])
        if not path.exists():
            return cache
        try:
            document = _read(path)
            methods = {name: Ranges(_pairs(each)) for name, each in document["methods"].items()}
            if document["format"] != _FORMAT or document["version"] != _VERSION:
                raise ValueError(f"expected format {_FORMAT}, version {_VERSION}")
            known = {key: str(document[key]) for key in hashes}
        except _NO_CACHE as error:
            raise UsageError(f"{path}: not a calibration cache ({error})") from error
        for key, what in (("model_sha256", "another model"), ("data_sha256", "other data")):
            if known[key] != hashes[key]:
                raise UsageError(
                    f"{path}: the calibration cache belongs to {what} (sha256 "
                    f"{known[key][:12]}..., here it is {hashes[key][:12]}...); delete it or name "
                    "another file"
                )
        cache._methods.update(methods)
        return cache

    def ranges(self, method: str) -> Ranges:
        """What is known by ``method``."""
        return self._methods.get(method, Ranges({}))

    def add(self, method: str, found: Ranges) -> Ranges:
        """Keep ``found`` as well, write the file, and return all that is known by ``method``."""
        self._methods[method] = self.ranges(method).union(found)
        if self.path is not None:
            self._write(self.path)
        return self._methods[method]

    def _write(self, path: Path) -> None:
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "model_sha256": self.model_sha256,
            "data_sha256": self.data_sha256,
        }
        methods = {name: dict(self._methods[name]) for name in sorted(self._methods)}
        if path.suffix != ".npz":
            text = json.dumps({**header, "methods": methods}, indent=1, ensure_ascii=False)
            write_text(path, text + "\n")
            return
        arrays: dict[str, Array] = {"header": np.array(json.dumps(header))}
        for name, ranges in methods.items():
            arrays[f"names:{name}"] = np.array(list(ranges), dtype=np.str_)
            arrays[f"ranges:{name}"] = np.array(list(ranges.values())).reshape(-1, 2)
        whole = io.BytesIO()
        np.savez(whole, **arrays)  # pyright: ignore[reportArgumentType]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole.getvalue())
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error


def data_hash(feeds: Iterable[Mapping[str, Any]]) -> str:
    """sha256 of all arrays, their names, types and shapes, in order."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            values = np.asarray(feed[name])
            digest.update(f"{name}\0{values.dtype}\0{values.shape}\0".encode())
            # Arrays of objects hold addresses, which differ from run to run.
            plain = values.dtype.kind != "O"
            digest.update(values.tobytes() if plain else repr(values.tolist()).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if path.suffix != ".npz":
        return json.loads(path.read_text(encoding="utf-8"))
    # A file that numpy opens itself stays open when it is refused.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        header: dict[str, Any] = json.loads(file["header"].item())
        methods = {
            key.removeprefix("names:"): dict(
                zip(file[key].tolist(), file[f"ranges:{key[6:]}"].tolist(), strict=True)
            )
            for key in file.files
            if key.startswith("names:")
        }
    return {**header, "methods": methods}


def _pairs(ranges: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
