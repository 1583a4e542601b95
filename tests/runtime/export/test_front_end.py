"""A front end's process: what it is told, what it answers, and how it fails."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfold.passes.errors import ExecutionError, InvalidModelError, OnnxfoldError, UsageError
from onnxfold.runtime.export.front_end import run_front_end
from onnxfold.runtime.export.sources import Source
from onnxfold.runtime.export.workers import protocol
from onnxfold.runtime.export.workers.protocol import Answer, Feed, FrontEndError, Request

_MODEL = '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Neg (x) }'


def _interpreter(folder: Path, body: str) -> Path:
    """A stand-in for an interpreter: runs ``body`` with ``folder``, where the request lies."""
    script = folder / "interpreter"
    lines = [
        f"#!{sys.executable}",
        "import sys, json",
        "from pathlib import Path",
        "folder = Path(sys.argv[-1])",
        body,
    ]
    script.write_text("\n".join(lines))
    script.chmod(0o755)
    return script


def _answering(document: str) -> str:
    return f"(folder / 'answer.json').write_text(json.dumps({document}))"


def _source(tmp_path: Path) -> Source:
    return Source(tmp_path / "model.tflite", "tflite")


def test_a_model_and_samples_come_back(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(_MODEL), tmp_path / "made.onnx")
    body = "\n".join(
        [
            "import shutil",
            f"shutil.copy({str(tmp_path / 'made.onnx')!r}, folder / 'model.onnx')",
            "request = json.loads((folder / 'request.json').read_text())",
            _answering(
                "{'answer': {'inputs': ['x'], 'outputs': ['y'], 'versions': {},"
                " 'notes': [request['kind']]}}"
            ),
        ]
    )
    python = _interpreter(tmp_path, body)
    found = run_front_end(_source(tmp_path), Request("tflite", "p", 18), python=python)
    assert found.model is not None
    assert found.model.graph.name == "g"
    assert found.answer.notes == ("tflite",)
    assert found.feeds == ()


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("usage", UsageError, "model.tflite: why"),
        ("invalid", InvalidModelError, "model.tflite: why"),
        ("unsupported", InvalidModelError, "model.tflite: why"),
        ("missing", UsageError, r"pip install 'onnxfold\[tf\]'"),
        ("crash", ExecutionError, "tensorflow: why"),
    ],
)
def test_faults_become_errors_of_their_class(
    fault: str, kind: type[OnnxfoldError], words: str, tmp_path: Path
) -> None:
    python = _interpreter(tmp_path, _answering(f"{{'fault': {fault!r}, 'message': 'why'}}"))
    with pytest.raises(kind, match=words):
        run_front_end(_source(tmp_path), Request("tflite", "p", 18), python=python)


def test_a_crash_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    python = _interpreter(tmp_path, "sys.exit('out of\\nmemory')")
    with pytest.raises(ExecutionError, match="tensorflow crashed: out of memory"):
        run_front_end(_source(tmp_path), Request("tflite", "p", 18), python=python)


def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    python = _interpreter(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(ExecutionError, match="not exported within"):
        run_front_end(_source(tmp_path), Request("tflite", "p", 18), python=python, seconds=0.5)


def test_no_such_interpreter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot run"):
        run_front_end(_source(tmp_path), Request("tflite", "p", 18), python=tmp_path / "none")


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_a_framework_that_is_missing_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs tensorflow, which is not installed"):
        run_front_end(_source(tmp_path), Request("tflite", "p", 18))


def test_arrays_survive_the_folder(tmp_path: Path) -> None:
    feeds: list[Feed] = [{"a/b": np.arange(3), "c": np.ones((), np.float32)} for _ in range(2)]
    protocol.write_request(tmp_path, Request("tflite", "p", 18), feeds)
    request = protocol.read_request(tmp_path)
    assert (request.kind, request.path, request.opset) == ("tflite", "p", 18)
    assert not request.runs_only
    again = protocol.read_feeds(tmp_path)
    assert [sorted(feed) for feed in again] == [["a/b", "c"]] * 2
    np.testing.assert_array_equal(again[1]["a/b"], feeds[1]["a/b"])
    protocol.write_samples(tmp_path, feeds, feeds[::-1])
    given, expected, others = protocol.read_samples(tmp_path)
    assert len(given) == len(expected) == 2
    assert others == []


def test_what_a_front_end_raises_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol.write_request(tmp_path, Request("tflite", "p", 18), [])

    def dup2(old: int, new: int) -> int:
        return new

    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path)])
    monkeypatch.setattr("os.dup2", dup2)

    def export(request: Request, folder: Path) -> Answer:
        raise FrontEndError("two\nlines", "unsupported")

    protocol.serve(export)
    text = (tmp_path / protocol.ANSWER).read_text()
    assert text == '{"fault": "unsupported", "message": "two lines"}'
