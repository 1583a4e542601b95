"""Build magika's calibration and evaluation sets from the files on this machine.

magika classifies files by content, so any machine holds labelled data: every file whose extension
names its type beyond doubt. Features are those of magika's own feature extraction, version 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.samples import Samples, save_sets

Features = NDArray[np.int32]

LABEL_BY_EXTENSION: Mapping[str, str] = {
    ".awk": "awk",
    ".bat": "batch",
    ".bmp": "bmp",
    ".bz2": "bzip",
    ".c": "c",
    ".cmake": "cmake",
    ".css": "css",
    ".csv": "csv",
    ".diff": "diff",
    ".el": "lisp",
    ".exe": "pebin",
    ".f90": "fortran",
    ".gif": "gif",
    ".gz": "gzip",
    ".h5": "h5",
    ".html": "html",
    ".ini": "ini",
    ".ipynb": "ipynb",
    ".jar": "jar",
    ".java": "java",
    ".jpg": "jpeg",
    ".js": "javascript",
    ".json": "json",
    ".m4": "m4",
    ".md": "markdown",
    ".npy": "npy",
    ".npz": "npz",
    ".onnx": "onnx",
    ".otf": "otf",
    ".patch": "diff",
    ".pdf": "pdf",
    ".php": "php",
    ".pm": "perl",
    ".png": "png",
    ".po": "po",
    ".proto": "proto",
    ".ps": "postscript",
    ".ps1": "powershell",
    ".py": "python",
    ".pyc": "pythonbytecode",
    ".pyi": "python",
    ".rb": "ruby",
    ".rst": "rst",
    ".sh": "shell",
    ".so": "elf",
    ".sql": "sql",
    ".svg": "svg",
    ".tcl": "tcl",
    ".tex": "latex",
    ".toml": "toml",
    ".ttf": "ttf",
    ".whl": "zip",
    ".xml": "xml",
    ".xz": "xz",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".zip": "zip",
}
"""The file name extensions used, with the label magika gives such files."""

CALIBRATION_SAMPLES = 512
EVALUATION_SAMPLES = 1024
SCANNED_FILES = 400_000
FILES_PER_LABEL = 400
SMALLEST_FILE = 128
"""Bytes: shorter files hold too little to tell one text format from another."""


@dataclass(frozen=True)
class FeatureSpec:
    """How magika turns a file into numbers, from its config.min.json.

    Attributes:
        beg_size: bytes taken from the start.
        end_size: bytes taken from the end.
        block_size: bytes read at each end before white space is stripped.
        padding_token: the value that fills missing bytes.
        labels: the names of the classes, in the order of the model's output.
    """

    beg_size: int
    end_size: int
    block_size: int
    padding_token: int
    labels: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> FeatureSpec:
        """Read the specification from magika's own configuration file."""
        config = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            beg_size=int(config["beg_size"]),
            end_size=int(config["end_size"]),
            block_size=int(config["block_size"]),
            padding_token=int(config["padding_token"]),
            labels=tuple(config["target_labels_space"]),
        )


def extract_features(path: Path, spec: FeatureSpec) -> Features:
    """Return magika's features of one file: int32 [beg_size + end_size].

    The first and the last block are read, stripped of white space at the outer side, and their
    outermost bytes kept, the start padded on its right and the end on its left.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        block = min(spec.block_size, size)
        stream.seek(0)
        head = stream.read(block).lstrip()[: spec.beg_size]
        stream.seek(size - block)
        tail = stream.read(block).rstrip()[-spec.end_size :]
    features = np.full(spec.beg_size + spec.end_size, spec.padding_token, dtype=np.int32)
    features[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    features[features.size - len(tail) :] = np.frombuffer(tail, dtype=np.uint8)
    return features


def default_roots() -> list[Path]:
    """Return the folders searched: this Python, its libraries and the system's shared files."""
    names = (
        f"{sys.prefix}/lib",
        f"{sys.base_prefix}/lib",
        f"{sys.base_prefix}/include",
        "/usr/share",
        "/usr/lib",
        "/usr/include",
        "/etc",
    )
    return [Path(name) for name in dict.fromkeys(names) if Path(name).is_dir()]


def build(spec: FeatureSpec, roots: Sequence[Path]) -> tuple[Samples, Samples]:
    """Return the calibration and the evaluation set, which share no sample.

    Labels with many files give as many samples as the others do: the cap per label is the smallest
    that fills both sets. The same files give the same sets.

    Raises:
        ValueError: when the machine holds fewer than 512 suitable files.
    """
    found = _candidates(spec, roots)
    seen: set[bytes] = set()
    samples = {label: _read(found[label], spec, seen) for label in sorted(found)}
    wanted = CALIBRATION_SAMPLES + EVALUATION_SAMPLES
    cap = _cap_that_fills(wanted, [len(rows) for rows in samples.values()])
    pairs = [
        (row, spec.labels.index(label)) for label, rows in samples.items() for row in rows[:cap]
    ]
    if len(pairs) < 512:
        folders = ", ".join(str(root) for root in roots)
        raise ValueError(f"only {len(pairs)} labelled files found in {folders}: 512 are needed")
    order = np.random.default_rng(0).permutation(len(pairs))
    split = min(CALIBRATION_SAMPLES, len(pairs) // 3)
    chosen = order[:wanted]
    return _stack(pairs, chosen[:split]), _stack(pairs, chosen[split:])


def _candidates(spec: FeatureSpec, roots: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the paths of each label in a fixed order that mixes folders."""
    known = {ext: label for ext, label in LABEL_BY_EXTENSION.items() if label in spec.labels}
    found: dict[str, list[tuple[bytes, Path]]] = {}
    for count, path in enumerate(_walk(roots)):
        if count == SCANNED_FILES:
            break
        label = known.get(path.suffix.lower())
        if label is not None:
            key = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
            found.setdefault(label, []).append((key, path))
    return {label: [path for _, path in sorted(paths)] for label, paths in found.items()}


def _walk(roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders.sort()
            for name in sorted(names):
                yield Path(folder, name)


def _read(paths: Sequence[Path], spec: FeatureSpec, seen: set[bytes]) -> list[Features]:
    """Return the features of the first usable files whose features are not in `seen` yet."""
    rows: list[Features] = []
    for path in paths:
        if len(rows) == FILES_PER_LABEL:
            break
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size < SMALLEST_FILE:
                continue
            row = extract_features(path, spec)
        except OSError:
            continue
        digest = hashlib.sha256(row.tobytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        rows.append(row)
    return rows


def _cap_that_fills(wanted: int, available: Sequence[int]) -> int:
    """Return the smallest cap per label with which `wanted` samples come together."""
    for cap in range(1, FILES_PER_LABEL):
        if sum(min(cap, count) for count in available) >= wanted:
            return cap
    return FILES_PER_LABEL


def _stack(pairs: Sequence[tuple[Features, int]], chosen: NDArray[np.int64]) -> Samples:
    kept = [pairs[int(index)] for index in chosen]
    inputs: Features = np.stack([row for row, _ in kept])
    return Samples("bytes", inputs, np.array([label for _, label in kept], dtype=np.int64))


def main() -> None:
    """Write calibration.npz and evaluation.npz into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="magika's config.min.json")
    parser.add_argument("folder", type=Path, help="where the two files go")
    arguments = parser.parse_args()
    calibration, evaluation = build(FeatureSpec.load(arguments.config), default_roots())
    save_sets(arguments.folder, calibration, evaluation)
    print(f"{len(calibration.labels)} calibration and {len(evaluation.labels)} evaluation samples")


if __name__ == "__main__":
    main()
