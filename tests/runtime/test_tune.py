"""The measured table of costs."""

from __future__ import annotations

from onnxfold.passes.fold.costs import FAMILIES, convolution_features, integer_family
from onnxfold.runtime.session import version
from onnxfold.runtime.tune import STEPS, fit_costs, measure_costs


def test_a_quick_measurement_gives_a_whole_table() -> None:
    told: list[None] = []
    table = measure_costs(lambda: told.append(None), sweeps=1)
    assert set(table.microseconds) == set(FAMILIES)
    assert table.onnxruntime == version()
    assert STEPS % len(told) == 0
    small = table.cost(*_layer(32, 64))
    assert 0 < small < table.cost(*_layer(512, 4096))


def _layer(channels: int, pixels: int) -> tuple[str, dict[str, float]]:
    features = convolution_features((3, 3), channels, channels, pixels)
    return integer_family(channels, channels, 1), dict(features)


def test_costs_are_found_again() -> None:
    names = ("constant", "rows", "products")
    truth = {"constant": 3.0, "rows": 0.002, "products": 1e-6}
    samples = [
        (
            {"constant": 1.0, "rows": rows, "products": products},
            truth["constant"] + truth["rows"] * rows + truth["products"] * products,
        )
        for rows in (10.0, 1000.0, 5000.0)
        for products in (1e3, 1e6, 1e7)
    ]
    found = fit_costs(names, samples)
    assert all(abs(found[name] / truth[name] - 1) < 1e-2 for name in names)


def test_no_cost_is_negative() -> None:
    samples = [({"constant": 1.0, "rows": rows}, 100.0 - rows) for rows in (1.0, 20.0, 50.0)]
    found = fit_costs(("constant", "rows"), samples)
    assert found["rows"] == 0
    assert 50 <= found["constant"] <= 100
