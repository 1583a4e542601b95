"""A sample of the cases of TensorFlow: what tf2onnx converts, `export` does, and rightly.

All of them: ``python -m fixtures.tensorflow_cases.corpus``.
"""

from __future__ import annotations

import onnx_ir as ir
import pytest

from fixtures.fetch import DownloadError
from fixtures.tensorflow_cases.corpus import Row, export_cases, rows_of
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import EXPORTED
from onnxfold.passes.registry import parse_passes

pytestmark = [pytest.mark.network, pytest.mark.slow]

_SAMPLE = 80


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("cases")
    try:
        export_cases(folder, "--sample", str(_SAMPLE))
    except DownloadError as error:
        pytest.skip(str(error))
    return list(rows_of(folder))


def test_every_case_comes_to_what_it_should(rows: list[Row]) -> None:
    assert len(rows) > _SAMPLE * 0.7
    assert {each.place.split("/")[0] for each in rows} == {"direct", "lite", "lite-int8"}
    surprises = [each.surprise for each in rows if each.surprise]
    assert not surprises, "\n".join(surprises)


def test_the_clean_up_removes_nodes_and_is_done_when_it_is_done(rows: list[Row]) -> None:
    removed = 0
    for row in rows:
        if row.judged.model is None or row.judged.exported is None:
            continue
        exported = row.judged.exported.model
        assert exported is not None
        once = _nodes(row.judged.model)
        removed += len(_nodes(exported)) - len(once)
        again = Pipeline(parse_passes(EXPORTED)).run(row.judged.model).model
        assert _nodes(again) == once, row.place
    assert removed > _SAMPLE


def _nodes(model: ir.Model) -> list[tuple[str, list[str | None]]]:
    return [(node.op_type, [each and each.name for each in node.inputs]) for node in model.graph]
