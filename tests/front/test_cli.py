from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.cli import build_parser, main
from onnxfold.console import print_item
from onnxfold.options.shared import TARGETS
from onnxfold.passes.errors import InvalidModelError
from onnxfold.runtime.compiler.options import Target
from onnxfold.runtime.report.markdown import escape


@pytest.fixture
def net(parse: Callable[..., ir.Model], tmp_path: Path) -> Path:
    """A small float network with something to remove in it."""
    model = parse(
        """
        g (float[N,4] x) => (float[N,3] y)
        <float[4,3] w = {0.1,0.2,0.3,0.4,0.5,0.6,-0.1,-0.2,-0.3,-0.4,-0.5,-0.6}>
        {
            same = Identity(x)
            product = MatMul(same, w)
            y = Relu(product)
        }
        """
    )
    path = tmp_path / "net.onnx"
    ir.save(model, path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("compile", "fold", "optimize", "loss", "verify", "opt", "explain"):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([command, "--help"])
        assert stop.value.code == 0
        assert "exit codes" in capsys.readouterr().out


def test_optimize_writes_the_model_and_the_report(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = net.read_bytes()
    target, report = tmp_path / "out.onnx", tmp_path / "report"
    code, out, err = run(capsys, "optimize", net, "-o", target, "--report", report)
    assert (code, err) == (0, "")
    assert "passed" in out
    assert [node.op_type for node in onnx.load(target).graph.node] == ["MatMul", "Relu"]
    assert net.read_bytes() == before
    document = json.loads((report / "report.json").read_text())
    assert document["schema"] == "onnxfold-report/2"
    assert document["data"]["generated"] is True
    assert document["result"]["path"] == str(target)
    assert "# onnxfold optimize: passed" in (report / "report.md").read_text()


def test_json_is_the_report_and_nothing_else(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "optimize", net, "-o", tmp_path / "out.onnx", "--json")
    assert code == 0
    assert json.loads(out)["verdict"] == {"passed": True, "reasons": []}


def test_the_same_command_twice_writes_the_same_bytes(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for target in targets:
        assert run(capsys, "optimize", net, "-o", target)[0] == 0
    assert targets[0].read_bytes() == targets[1].read_bytes()


def test_verify_says_which_output_differs(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = onnx.load(net)
    broken.graph.node[2].op_type = "Abs"
    onnx.save(broken, tmp_path / "broken.onnx")
    assert run(capsys, "verify", net, net, "--contract", "exact")[0] == 0
    code, out, err = run(capsys, "verify", net, tmp_path / "broken.onnx")
    assert code == 1
    assert "output 'y'" in err
    assert err.count("\n") == 1
    assert err.count("output 'y'") == 1
    assert out.count("\n  output 'y'") > 1


def test_verify_that_cannot_decide_exits_with_5(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "verify", net, net, "--budget", "flips=0.01,sqnr=20")
    assert code == 5
    assert "approximate: inconclusive" in out
    assert "too few samples" in err


def test_verify_prints_json_or_markdown_that_name_the_files(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "verify", net, net, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["candidate"] == str(net)
    code, out, _ = run(capsys, "verify", net, net, "--format", "markdown")
    assert out.startswith("# onnxfold verify: passed\n")
    assert f"against {escape(net)}, contract reassociated." in out


def test_opt_runs_a_textual_pipeline_and_lists_passes(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.onnx"
    code, _, _ = run(capsys, "opt", net, "-o", target, "--passes", "remove-identity")
    assert code == 0
    assert len(onnx.load(target).graph.node) == 2
    code, out, _ = run(capsys, "opt", "--list", "--json")
    assert code == 0
    assert "remove-identity" in [row["name"] for row in json.loads(out)]


def test_opt_stops_after_a_number_of_rewrites(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.onnx"
    words = ("opt", net, "-o", target, "--passes", "remove-identity", "--max-rewrites", 0)
    assert run(capsys, *words)[0] == 0
    assert len(onnx.load(target).graph.node) == 3


def test_bisect_names_the_guilty_rewrite(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "bad.py"
    script.write_text("def halve(graph):\n    graph.nodes[-1].op = 'Neg'\n")
    passes = f'remove-identity,surgeon{{script="{script}:halve"}}'
    code, out, _ = run(capsys, "opt", net, "--passes", passes, "--bisect")
    assert code == 1
    assert "surgeon" in out
    code, out, _ = run(capsys, "opt", net, "--passes", "remove-identity", "--bisect")
    assert (code, out) == (0, "no rewrite breaks the model\n")


def test_explain_counts_and_times(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", net)
    assert code == 0
    assert "the model is float" in out
    assert re.search(r"multiply-accumulates +12$", out, re.MULTILINE)
    code, out, _ = run(capsys, "explain", net, "--json")
    document = json.loads(out)
    assert document["census"]["ops"] == {"Identity": 1, "MatMul": 1, "Relu": 1}
    (island,) = document["islands"]
    assert island["ops"] == {"Identity": 1, "MatMul": 1, "Relu": 1}
    assert island["time_share"] == pytest.approx(1.0)
    assert "onnxfold compile" in island["reasons"][0]["advice"]


def test_explain_shows_what_a_fold_leaves(
    fixtures_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "explain", fixtures_dir / "qdq_net.onnx")
    assert code == 0
    assert "the model is fake-quantized" in out
    assert "folded (ort)" in out
    assert re.search(r"on integers +0.0% +100.0%", out)
    assert "on purpose: QuantizeLinear" in out
    assert "the graph input 'image' is float (feed it as codes)" in out
    code, out, _ = run(capsys, "explain", fixtures_dir / "qdq_net.onnx", "--target", "qdq")
    assert re.search(r"between Q and DQ, in float +100.0% +100.0%", out)


@pytest.mark.parametrize(
    ("weight", "message", "channels"),
    [
        (127, "VNNI: no, 1 layer can saturate (4 of 4 channels of '", [4]),
        (64, "VNNI: yes, no u8 x s8 product can saturate", []),
    ],
)
def test_explain_warns_of_layers_that_depend_on_the_machine(
    weight: int,
    message: str,
    channels: list[int],
    parse: Callable[..., ir.Model],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = parse(f"""
        g (uint8[1,4] q) => (uint8[1,4] y)
        <int8[4,4] w = {{{", ".join([str(weight)] * 16)}}}, float s = {{0.1}}, uint8 z = {{0}},
         float t = {{0.01}}, int8 v = {{0}}>
        {{
            x = DequantizeLinear(q, s, z)
            r = DequantizeLinear(w, t, v)
            m = MatMul(x, r)
            y = QuantizeLinear(m, s, z)
        }}
    """)
    ir.save(model, tmp_path / "net.onnx")
    code, out, _ = run(capsys, "explain", tmp_path / "net.onnx")
    assert code == 0
    assert message in out
    code, out, _ = run(capsys, "explain", tmp_path / "net.onnx", "--json")
    assert [layer["channels"] for layer in json.loads(out)["saturating"]] == channels


@pytest.mark.parametrize("width", [80, 120])
def test_lists_are_as_wide_as_the_terminal(
    width: int,
    fixtures_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(capsys, "explain", fixtures_dir / "qdq_net.onnx")[0] == 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_item("word " * 60, first="  ", rest=4)
    lines = capsys.readouterr().out.splitlines()
    assert width - 10 < max(map(len, lines)) <= width
    assert {line[:5] for line in lines[1:]} == {"    w"}


def test_every_target_can_be_asked_for_and_is_explained() -> None:
    assert set(TARGETS) == set(get_args(Target))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = MatMul(x, w)", "holds no QuantizeLinear/DequantizeLinear"),
        (
            "c = Cast<to = 1>(q) r = Mul(c, s) y = MatMul(x, r)",
            "only weights are quantized (1 of them behind Cast and Mul, the first is 'q')",
        ),
    ],
)
def test_a_fold_with_nothing_to_fold_says_so(
    body: str,
    message: str,
    parse: Callable[..., ir.Model],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ir.save(
        parse(
            f"""g (float[1,2] x) => (float[1,2] y)
            <int8[2,2] q = {{1, 2, 3, 4}}, float s = {{0.1}}, float[2,2] w = {{1, 2, 3, 4}}>
            {{ {body} }}"""
        ),
        tmp_path / "net.onnx",
    )
    code, out, err = run(capsys, "fold", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx")
    assert (code, out) == (2, "")
    assert "nothing to fold" in err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


# Bad input: one clear line, the right exit code, nothing written.


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("optimise", "{net}"), 2, "no command 'optimise'; did you mean 'optimize'?"),
        (("optimize", "{net}"), 2, "-o/--output"),
        (("optimize", "{dir}/missing.onnx", "-o", "{out}"), 3, "missing.onnx"),
        (("optimize", "{dir}/truncated.onnx", "-o", "{out}"), 3, "truncated.onnx"),
        (("optimize", "{dir}/text.onnx", "-o", "{out}"), 3, "text.onnx"),
        (("optimize", "{dir}/invalid.onnx", "-o", "{out}"), 3, "invalid.onnx"),
        (("optimize", "{dir}/future.onnx", "-o", "{out}"), 3, "opset 99 is newer"),
        (("optimize", "{net}", "-o", "{net}"), 2, "is the input"),
        (("optimize", "{net}", "-o", "{dir}/link.onnx"), 2, "is the input"),
        (("optimize", "{net}", "-o", "{dir}/nowhere/out.onnx"), 2, "no folder"),
        (("optimize", "{net}", "-o", "{out}", "--data", "{dir}/none.npz"), 2, "none.npz"),
        (("optimize", "{net}", "-o", "{out}", "--data", "{dir}/empty.npz"), 2, "empty.npz"),
        (("optimize", "{net}", "-o", "{out}", "--data", "{dir}/nan.npz"), 2, "nan"),
        (("optimize", "{net}", "-o", "{out}", "--data", "{dir}/name.npz"), 2, "'x'"),
        (("optimize", "{net}", "-o", "{out}", "--data", "{dir}/shape.npz"), 2, "'x' wants"),
        (("opt", "{net}", "-o", "{out}", "--passes", "remove-identty"), 2, "remove-identity"),
        (("opt", "{net}", "-o", "{out}", "--passes", "fold-constants{max=1}"), 2, "max-bytes"),
        (("opt", "{net}", "-o", "{out}", "--passes", "fold-constants{"), 2, "expected"),
        (("opt", "{net}", "-o", "{out}"), 2, "--passes"),
        (("compile", "{net}", "-o", "{out}"), 2, "--data"),
        (("compile", "{net}", "-o", "{out}", "--data", "{good}", "--budget", "much"), 2, "budget"),
        (("compile", "{net}", "-o", "{out}", "--data", "{good}", "--plan", "{net}"), 2, "plan"),
        (("fold", "{net}", "-o", "{out}", "--target", "tpu"), 2, "tpu"),
        (("optimize", "{net}", "-o", "{out}", "--dta", "x"), 2, "did you mean '--data'?"),
        (("optimize", "{net}", "again", "-o", "{out}"), 2, "too many: 'again'"),
        (("optimize", "{net}", "-o", "/dev/null"), 2, "not a regular file"),
        (("optimize", "{net}", "-o", "{good}", "--data", "{good}"), 2, "is the input"),
        (("optimize", "{net}", "-o", "{out}", "--report", "{net}"), 2, "is not a folder"),
        (("opt", "{net}", "-o", "{out}", "--passes", ""), 2, "--passes"),
        (("opt", "{net}", "-o", "{out}", "--passes", "xyz"), 2, "opt --list"),
        (("opt", "{net}", "-o", "{out}", "--passes", "{sg}:leaves}"), 2, "SystemExit: 7"),
        (("optimize", "{net}", "-o", "{out}", "--data", "{script}:leaves"), 2, "SystemExit: 7"),
        (("optimize", "{net}", "-o", "{out}", "--data", "{script}:leave"), 2, "mean 'leaves'?"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: tuple[str, ...],
    code: int,
    message: str,
    net: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_bad_files(net, tmp_path)
    out = tmp_path / "out.onnx"
    script = tmp_path / "user.py"
    places = {
        "net": net,
        "dir": tmp_path,
        "out": out,
        "good": tmp_path / "good.npz",
        "script": script,
        "sg": f"surgeon{{script={script}",
    }
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    got, _, err = run(capsys, *(fill(word, places) for word in words))
    assert got == code
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def fill(word: str, places: Mapping[str, object]) -> str:
    for name, path in places.items():
        word = word.replace(f"{{{name}}}", str(path))
    return word


def write_bad_files(net: Path, folder: Path) -> None:
    data = net.read_bytes()
    (folder / "truncated.onnx").write_bytes(data[: len(data) // 2])
    (folder / "text.onnx").write_text("this is not a model")
    invalid = onnx.load(net)
    invalid.graph.node[1].input[0] = "nobody makes this"
    (folder / "invalid.onnx").write_bytes(invalid.SerializeToString())
    future = onnx.load(net)
    future.opset_import[0].version = 99
    (folder / "future.onnx").write_bytes(future.SerializeToString())
    (folder / "link.onnx").symlink_to(net)
    good = np.ones((4, 4), np.float32)
    np.savez(folder / "good.npz", x=good)
    np.savez(folder / "empty.npz", x=good[:0])
    np.savez(folder / "nan.npz", x=good * np.nan)
    np.savez(folder / "name.npz", z=good)
    np.savez(folder / "shape.npz", x=np.ones((4, 5), np.float32))
    (folder / "user.py").write_text("def leaves(*graph):\n    raise SystemExit(7)\n")


def test_an_unusable_report_folder_is_found_before_the_work(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The model does not even load: the folder is looked at first.
    (tmp_path / "text.onnx").write_text("this is not a model")
    words = ("optimize", tmp_path / "text.onnx", "-o", tmp_path / "out.onnx", "--report", net)
    assert run(capsys, *words)[0] == 2


def test_what_a_script_prints_does_not_get_into_the_json(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "loud.py"
    script.write_text("def loud(graph):\n    print('hello')\n    graph.nodes[-1].name = 'new'\n")
    words = (
        "opt",
        net,
        "-o",
        tmp_path / "out.onnx",
        "--passes",
        f"surgeon{{script={script}:loud}}",
    )
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, "hello\n")
    assert json.loads(out)["verdict"]["passed"]


def test_a_script_that_breaks_the_graph_is_one_line(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "cut.py"
    script.write_text("def cut(graph):\n    graph.nodes[1].inputs[0].inputs.clear()\n")
    words = ("opt", net, "-o", tmp_path / "out.onnx", "--passes", f"surgeon{{script={script}:cut}}")
    code, _, err = run(capsys, *words)
    assert code == 4
    assert err.count("\n") == 1


def test_ctrl_c_is_one_line(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "stop.py"
    script.write_text("def stop():\n    raise KeyboardInterrupt\n    yield\n")
    words = ("optimize", net, "-o", tmp_path / "out.onnx", "--data", f"{script}:stop")
    code, _, err = run(capsys, *words)
    assert (code, err.count("\n")) == (130, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "stop.py"}


def test_a_reader_that_leaves_early_is_no_crash(net: Path) -> None:
    command = f'"{sys.executable}" -m onnxfold explain "{net}" --json | head -c 1'
    done = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")


def test_tables_have_no_trailing_blanks(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "optimize", net, "-o", tmp_path / "out.onnx")
    assert out.startswith("passes that changed something\n pass ")
    assert all(line == line.rstrip() for line in out.splitlines())


def test_debug_shows_the_traceback(net: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError):
        main(["optimize", str(tmp_path / "no.onnx"), "-o", str(tmp_path / "o.onnx"), "--debug"])
