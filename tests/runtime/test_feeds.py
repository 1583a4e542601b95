from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.generated_feeds import ValueRange, input_ranges
from onnxfold.runtime.specs import TensorSpec, input_specs

FLOAT = np.dtype(np.float32)
X = TensorSpec("x", FLOAT, ("N", 2))
INDEX = TensorSpec("i", np.dtype(np.int32), ("N",))
DATA = np.arange(10, dtype=np.float32).reshape(5, 2)


def spec(*dims: int | str | None, dtype: Any = np.float32, name: str = "x") -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), dims)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def rows(source: FeedSource) -> list[list[Any]]:
    return [feed["x"].tolist() for feed in source]


class Reader:
    """Like onnxruntime's CalibrationDataReader, which cannot rewind."""

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


class RewindingReader(Reader):
    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        super().__init__(feeds)
        self._all = feeds

    def rewind(self) -> None:
        self._feeds = iter(self._all)


def test_npz_is_cut_into_batches_and_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=DATA, labels=np.arange(5))
    source = open_feeds(path, [X], batch_size=2)

    assert rows(source) == rows(source) == [DATA[:2].tolist(), DATA[2:4].tolist(), [[8, 9]]]
    assert [extra["labels"].tolist() for _, extra in source.with_labels()] == [[0, 1], [2, 3], [4]]
    assert source.count == 3
    assert source.description == str(path)
    assert not source.generated


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_read_whatever_its_layout(compressed: bool, order: Any, tmp_path: Path) -> None:
    data = np.asarray(np.arange(24, dtype=np.float32).reshape(4, 2, 3), order=order)
    write = np.savez_compressed if compressed else np.savez
    write(tmp_path / "d.npz", x=data)
    (first, *_, last) = open_feeds(tmp_path / "d.npz", [spec("N", 2, 3)])
    np.testing.assert_array_equal(first["x"], data[:1])
    np.testing.assert_array_equal(last["x"], data[3:])


def test_npz_is_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((1000, 1000), np.float32))
    allocated: list[int] = []
    empty = np.empty

    def spy(shape: tuple[int, ...], dtype: Any) -> Array:
        allocated.append(int(np.prod(shape)))
        array: Array = empty(shape, dtype)
        return array

    monkeypatch.setattr(np, "empty", spy)
    next(iter(open_feeds(path, [spec("N", 1000)], batch_size=10)))
    assert max(allocated) == 10_000


def test_fixed_batch_is_filled(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=DATA[:4])
    assert [feed["x"].shape for feed in open_feeds(path, [spec(2, 2)])] == [(2, 2), (2, 2)]
    with pytest.raises(
        UsageError, match=r"batches of 3 are asked, and input 'x' is float32\[2,2\]"
    ):
        open_feeds(path, [spec(2, 2)], batch_size=3)
    with pytest.raises(UsageError, match="4 samples do not fill batches of 3"):
        open_feeds(path, [spec(3, 2)])


def test_array_of_one_more_dimension_holds_whole_feeds(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=DATA.reshape(5, 1, 2), s=np.arange(5.0, dtype=np.float32))
    feeds = list(open_feeds(path, [spec(1, 2), TensorSpec("s", FLOAT, ())]))
    assert [(feed["x"].shape, feed["s"].shape) for feed in feeds] == [((1, 2), ())] * 5


def test_folder_of_npz_is_one_feed_a_file(tmp_path: Path) -> None:
    save(tmp_path / "b.npz", x=DATA[2:5])
    save(tmp_path / "a.npz", x=DATA[:2])
    source = open_feeds(tmp_path, [X])
    assert rows(source) == [DATA[:2].tolist(), DATA[2:5].tolist()]
    assert source.count == 2


@pytest.mark.parametrize("named", [True, False])
def test_onnx_test_data_sets(named: bool, tmp_path: Path) -> None:
    for number in (10, 2):
        folder = tmp_path / f"test_data_set_{number}"
        folder.mkdir()
        tensors = [("x", DATA[:1] + number), ("i", np.array([number], np.int32))]
        for position, (name, array) in enumerate(reversed(tensors) if named else tensors):
            tensor = numpy_helper.from_array(array, name if named else "")
            (folder / f"input_{position}.pb").write_bytes(tensor.SerializeToString())
    source = open_feeds(tmp_path, [X, INDEX])
    assert [feed["i"].tolist() for feed in source] == [[2], [10]]
    assert rows(source) == [[[2, 3]], [[10, 11]]]
    assert rows(open_feeds(tmp_path / "test_data_set_10", [X, INDEX])) == [[[10, 11]]]


@pytest.mark.parametrize("kind", [Reader, RewindingReader])
def test_data_reader_is_read_again(kind: type[Reader]) -> None:
    source = open_feeds(kind([{"x": DATA[:1]}, {"x": DATA[1:2]}]), [X])
    first = next(iter(source))
    assert first["x"].tolist() == [[0, 1]]
    assert rows(source) == rows(source) == [[[0, 1]], [[2, 3]]]
    assert source.count is None


def test_nothing_is_written_beside_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    script = tmp_path / "mine.py"
    script.write_text("def feeds():\n    yield {}\n")
    open_feeds(f"{script}:feeds", [], limit=1)
    assert list(tmp_path.iterdir()) == [script]


def test_function_of_a_file_is_called_each_time(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for i in range(3):\n"
        "        yield {'x': np.full((1, 2), i, np.float32)}\n"
    )
    source = open_feeds(f"{script}:feeds", [X], limit=2)
    assert rows(source) == rows(source) == [[[0, 0]], [[1, 1]]]
    assert source.sha256 is not None


def test_feeds_in_memory_and_an_open_source() -> None:
    source = open_feeds([{"x": DATA[:1]}, {"x": DATA[1:2]}], [X])
    assert len(rows(source)) == source.count == 2
    assert open_feeds(source, [X]) is source
    assert len(rows(open_feeds(source, [X], limit=1))) == 1
    assert len(rows(open_feeds({"x": DATA}, [X], batch_size=5))) == 1
    assert source.sha256 is None


def test_hash_follows_the_contents(tmp_path: Path) -> None:
    hashes: list[str | None] = []
    for value in (1.0, 1.0, 2.0):
        path = save(tmp_path / "d.npz", x=np.full((1, 2), value, np.float32))
        hashes.append(open_feeds(path, [X]).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_safe_casts_are_done() -> None:
    feed = {"x": DATA[:1].astype(np.float64), "i": np.array([3], np.int64)}
    (checked,) = open_feeds([feed], [X, INDEX])
    assert (checked["x"].dtype, checked["i"].dtype) == (np.float32, np.int32)
    text = TensorSpec("x", np.dtype(object), ("N",))
    (words,) = open_feeds([{"x": np.array(["a", "b"])}], [text])
    assert words["x"].dtype == object
    assert words["x"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, 2]]), r"'x' wants float32\[N,2\], got int64\[1, 2\]"),
        (np.array([["a", "b"]]), r"wants float32\[N,2\], got string\[1, 2\]"),
        (np.ones((1, 3), np.float32), r"wants float32\[N,2\], got float32\[1, 3\]"),
        (np.ones(2, np.float32), r"wants float32\[N,2\], got float32\[2\]"),
        (np.array([[1e300, 0]]), "values out of range"),
        (np.array([[0, np.nan]], np.float32), r"sample 0: input 'x' holds nan at index \[0, 1\]"),
        (np.array([[-np.inf, 0]], np.float32), r"holds -inf at index \[0, 0\]"),
    ],
)
def test_bad_array_is_refused(array: Array, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(open_feeds([{"x": array}], [X]))


def test_integer_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'i' wants int32\[N\], got int64\[1\] with values out"):
        list(open_feeds([{"i": np.array([2**31])}], [INDEX]))
    unsigned = TensorSpec("i", np.dtype(np.uint64), ("N",))
    with pytest.raises(UsageError, match="values out of range"):
        list(open_feeds([{"i": np.array([-1])}], [unsigned]))


def test_infinity_is_let_through_on_request() -> None:
    feed = {"x": np.array([[-np.inf, 0]], np.float32)}
    assert len(list(open_feeds([feed], [X], allow_nonfinite=True))) == 1


def test_bad_sample_is_numbered() -> None:
    feeds = [{"x": DATA[:1]}, {"x": DATA[:1] * np.float32(np.nan)}]
    with pytest.raises(UsageError, match="feeds in memory, sample 1: input 'x' holds nan"):
        list(open_feeds(feeds, [X]))


def test_missing_input_says_what_there_is() -> None:
    inputs = [TensorSpec("images", FLOAT, ("N", 2))]
    with pytest.raises(UsageError, match=r"'images' \(.*\) has no data; there is 'image'"):
        list(open_feeds({"image": DATA}, inputs))


def test_unknown_input_of_a_data_reader_is_refused() -> None:
    reader = Reader([{"x": DATA[:1], "y": DATA[:1]}])
    with pytest.raises(UsageError, match="the model has no input 'y'"):
        list(open_feeds(reader, [X]))


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    script = tmp_path / "mine.py"
    script.write_text("def feeds():\n    return []\n")
    sources: list[object] = [[], Reader([]), f"{script}:feeds", {"x": DATA[:0]}]
    for source in sources:
        with pytest.raises(UsageError, match="no samples"):
            list(open_feeds(source, [X]))
    with pytest.raises(UsageError, match=r"neither \.npz files nor test_data_set"):
        open_feeds(tmp_path / "empty", [X])


def bad_sources(folder: Path) -> Iterator[tuple[object, str]]:
    (folder / "text.npz").write_text("no archive")
    (folder / "cut.npz").write_bytes(save(folder / "d.npz", x=DATA).read_bytes()[:200])
    (folder / "a.csv").write_text("1,2")
    (folder / "broken.py").write_text("def feeds(): raise KeyError('no file')\n1/0\n")
    (folder / "raises.py").write_text("def feeds():\n    raise KeyError('no file')\n")
    (folder / "lists.py").write_text("def feeds():\n    return [[1, 2]]\n")
    save(folder / "objects.npz", x=np.array([{}], object))
    save(folder / "lengths.npz", x=DATA, i=np.arange(4))
    save(folder / "scalar.npz", x=np.array(1.0))
    save(folder / "none.npz")
    yield folder / "missing.npz", "no such file or folder"
    yield folder / "text.npz", "not an .npz file"
    yield folder / "cut.npz", "not an .npz file"
    yield folder / "a.csv", "not a source of feeds: wants .npz"
    yield f"{folder / 'missing.py'}:feeds", "no such file"
    yield f"{folder / 'broken.py'}:feeds", "failed: ZeroDivisionError"
    yield f"{folder / 'raises.py'}:feeds", "failed: KeyError: 'no file'"
    yield f"{folder / 'raises.py'}:others", "has no function 'others'"
    yield f"{folder / 'lists.py'}:feeds", "got list, wanted a dict of arrays"
    yield folder / "objects.npz", "pickled objects"
    yield folder / "lengths.npz", "'i' has 4 samples and 'x' has 5"
    yield folder / "scalar.npz", "'x' is a scalar"
    yield folder / "none.npz", "no arrays"
    yield 3, "cannot read feeds from int"


def test_bad_sources_are_refused_in_one_line(tmp_path: Path) -> None:
    for source, message in bad_sources(tmp_path):
        with pytest.raises(UsageError) as caught:
            list(open_feeds(source, [X]))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_parquet_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxfold\[parquet\]'"):
        list(open_feeds(tmp_path / "d.parquet", [X]))


def test_generated_feeds_are_repeatable_and_sane() -> None:
    inputs = [
        spec("N", 3, "H", "W", name="image"),
        spec("N", "T", dtype=np.int64, name="ids"),
        spec("N", "T", dtype=np.bool_, name="mask"),
        spec("N", dtype=object, name="text"),
        spec(2, dtype=np.int8, name="codes"),
        spec(name="scalar"),
    ]
    source = open_feeds(None, inputs, limit=4, seed=3, dims={"T": 5})
    first, second = list(source), list(source)

    assert source.generated
    assert source.description == "generated feeds (seed 3)"
    assert len(first) == source.count == 4
    assert first[0]["image"].shape == (1, 3, 64, 64)
    assert first[0]["ids"].shape == first[0]["mask"].shape == (1, 5)
    assert first[0]["scalar"].shape == ()
    assert all(set(np.unique(feed["ids"])) <= {0, 1} for feed in first)
    assert isinstance(first[0]["text"][0], str)
    for one, other in zip(first, second, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])
    assert not np.array_equal(first[0]["image"], first[1]["image"])


def test_generated_feeds_follow_the_model() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,4] x, int64[N] i, int16[N] c) => (uint8[N,4] q, float[N,2] e, float[N] d)
    <float s = {0.5}, uint8 z = {10}, float[5,2] table = {0,1,2,3,4,5,6,7,8,9}>
    { q = QuantizeLinear(x, s, z)  e = Gather(table, i)  d = DequantizeLinear(c, s) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    ranges = input_ranges(model)

    assert ranges == {
        "x": ValueRange(-5.0, 122.5),
        "i": ValueRange(0, 4),
        "c": ValueRange(-32768, 32767),
    }
    feeds = list(open_feeds(None, input_specs(model), limit=64, ranges=ranges))
    assert {int(feed["i"][0]) for feed in feeds} == {0, 1, 2, 3, 4}
    assert min(feed["x"].min() for feed in feeds) < 0 < 60 < max(feed["x"].max() for feed in feeds)


def test_sequence_cannot_be_generated() -> None:
    with pytest.raises(UsageError, match=r"'x' \(seq\(tensor\(float\)\)\) cannot be generated"):
        list(open_feeds(None, [TensorSpec("x", "seq(tensor(float))", None)]))


@pytest.mark.parametrize(("limit", "batch_size"), [(0, None), (None, 0)])
def test_nonsense_options_are_refused(limit: int | None, batch_size: int | None) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        open_feeds({"x": DATA}, [X], limit=limit, batch_size=batch_size)
