"""Trainer: steps, schedules, resuming bit by bit, what comes out, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fixtures.linear_regression import linear_regression
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, InvalidModelError, UsageError
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.training import Trainer


def with_optimizer(model: ir.Model, options: str) -> ir.Model:
    (added,) = parse_passes(f"add-optimizer{{{options}}}")
    added.run(model)
    return model


def batch(size: int, seed: int = 0) -> Feed:
    random = np.random.default_rng(seed)
    x = random.standard_normal((size, 3)).astype(np.float32)
    return {"x": x, "labels": x[:, :2] * 2 + 1}


def batches(count: int) -> list[Feed]:
    return [batch(4 + seed % 3, seed) for seed in range(count)]


def manual_steps(model: ir.Model, feeds: list[Feed]) -> tuple[list[float], dict[str, Array]]:
    session, state, losses = Session(model, REFERENCE), dict[str, Array](), list[float]()
    for feed in feeds:
        found = session.run({**feed, **state})
        state = {name[4:]: new for name, new in found.items() if name.startswith("new_state")}
        losses.append(float(found["loss"]))
    return losses, state


def test_steps_are_those_of_the_graph(linear: ir.Model) -> None:
    model = with_optimizer(linear, "kind=adam learning-rate=0.1")
    feeds = batches(7)
    trainer = Trainer(model, config=REFERENCE)
    wanted, state = manual_steps(model, feeds)
    assert [trainer.step(feed) for feed in feeds] == wanted
    assert trainer.steps == 7
    for name, array in trainer.weights().items():
        assert array.tobytes() == state[f"state_{name}"].tobytes()


def test_it_learns(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=momentum learning-rate=0.05"))
    losses = trainer.fit(batches(10), epochs=20)
    assert len(losses) == trainer.steps == 200
    assert losses[-1] < 1e-4 < losses[0]
    np.testing.assert_allclose(trainer.weights()["b"], [1, 1], atol=0.01)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw", "adagrad"])
def test_ten_steps_are_five_saved_loaded_and_five(kind: str, tmp_path: Path) -> None:
    model = with_optimizer(ir.from_proto(linear_regression()), f"kind={kind} clip-norm=1")
    feeds, path = batches(10), tmp_path / "state.npz"
    whole = Trainer(model)
    losses = whole.fit(feeds)
    first = Trainer(model)
    begun = first.fit(feeds[:5])
    first.save(path)
    second = Trainer(ir.to_proto(model))
    second.restore(path)
    assert second.steps == 5
    assert begun + second.fit(feeds[5:]) == losses
    for name, array in whole.weights().items():
        assert array.tobytes() == second.weights()[name].tobytes()


def test_saving_leaves_no_other_file_and_replaces_the_old_one(
    linear: ir.Model, tmp_path: Path
) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd"))
    path = tmp_path / "state.npz"
    for _ in range(2):
        trainer.step(batch(3))
        trainer.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["state.npz"]
    trainer.restore(path)
    assert trainer.steps == 2


def test_the_learning_rate_follows_a_schedule(linear: ir.Model) -> None:
    model = with_optimizer(linear, "kind=sgd learning-rate=7 trainable=b")
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5 if step == 0 else 0.0

    trainer = Trainer(model, learning_rate=schedule, config=REFERENCE)
    feed = batch(4)
    gradient = trainer.run(feed)["grad_b"]
    before = trainer.weights()["b"]
    trainer.step(feed)
    after = trainer.weights()["b"]
    np.testing.assert_allclose(after, before - 0.5 * gradient, rtol=1e-6)
    trainer.step(feed)
    assert trainer.weights()["b"].tobytes() == after.tobytes()
    assert asked == [0, 1]


def test_a_constant_learning_rate_replaces_the_graphs(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd learning-rate=1"), learning_rate=0.0)
    before = trainer.weights()
    trainer.step(batch(4))
    assert all(np.array_equal(before[name], new) for name, new in trainer.weights().items())


def test_running_is_no_step(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd"))
    first = trainer.run(batch(4))
    assert sorted(first) == ["grad_b", "grad_w", "loss", "y"]
    assert trainer.step(batch(4)) == pytest.approx(float(first["loss"]))
    assert trainer.run(batch(4))["loss"] < first["loss"]
    assert trainer.steps == 1


def test_the_model_that_was_given_is_not_changed(linear: ir.Model) -> None:
    model = with_optimizer(linear, "kind=adam learning-rate=0.5")
    before = ir.to_proto(model).SerializeToString()
    trainer = Trainer(model)
    trainer.fit(batches(3))
    trainer.export()
    assert ir.to_proto(model).SerializeToString() == before


def test_the_export_is_the_model_with_trained_weights(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=adam learning-rate=0.1"), config=REFERENCE)
    trainer.fit(batches(3))
    exported = trainer.export()
    assert [value.name for value in exported.graph.inputs] == ["x", "labels"]
    assert [value.name for value in exported.graph.outputs] == ["y", "loss"]
    onnx.checker.check_model(ir.to_proto(exported), full_check=True)
    found, wanted = Session(exported, REFERENCE).run(batch(4)), trainer.run(batch(4))
    assert found["y"].tobytes() == wanted["y"].tobytes()
    trainer.step(batch(4))
    again = Session(exported, REFERENCE).run(batch(4))
    assert again["y"].tobytes() == wanted["y"].tobytes()


def test_fit_tells_and_repeats(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd"))
    told: list[tuple[int, float]] = []
    losses = trainer.fit(batches(2), steps=5, on_step=lambda step, loss: told.append((step, loss)))
    assert told == list(enumerate(losses, 1))
    assert len(losses) == 5


class Heard:
    def __init__(self) -> None:
        self.events: list[object] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.events.append((name, total))

    def advance(self) -> None:
        self.events.append("step")


def test_fit_shows_its_progress(linear: ir.Model) -> None:
    trainer, heard = Trainer(with_optimizer(linear, "kind=sgd")), Heard()
    trainer.fit(batches(2), epochs=2, progress=heard)
    assert heard.events == [("training", 4), *["step"] * 4]


def test_no_batches(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd"))
    with pytest.raises(UsageError, match=r"no batches to train on$"):
        trainer.fit([])
    with pytest.raises(UsageError, match="only once: pass a list"):
        trainer.fit(iter(batches(2)), epochs=2)


def test_a_loss_that_is_no_number_names_the_step(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd learning-rate=0.1"))
    trainer.step(batch(4))
    before = trainer.weights()
    bad = {**batch(4), "labels": np.full((4, 2), np.nan, np.float32)}
    with pytest.raises(ExecutionError, match=r"loss is nan in step 2, .*look at the batch"):
        trainer.step(bad)
    assert trainer.steps == 1
    assert all(np.array_equal(before[name], new) for name, new in trainer.weights().items())
    trainer.step(batch(4))


def test_weights_that_explode_are_named(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd"), learning_rate=1e30)
    with pytest.raises(
        ExecutionError, match=r"loss is inf in step 2, .* is \d\.\d+e\+30 .*clip-norm"
    ):
        trainer.fit([batch(4)], epochs=9)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"x": batch(2)["x"]}, "input 'labels'.* is not fed"),
        ({**batch(2), "z": batch(2)["x"]}, "no input 'z'"),
        ({**batch(2), "labels": np.zeros((2, 2), np.int32)}, "wants float32.*, got int32.*astype"),
        ({**batch(2), "x": np.full((2, 3), 1e300)}, "wants float32.* with values out of range"),
        ({**batch(2), "state_b": np.zeros(2, np.float32)}, "trainer itself feeds 'state_b'"),
        ({**batch(2), "learning_rate": np.zeros((), np.float32)}, "feeds 'learning_rate'"),
    ],
)
def test_wrong_feeds(feed: Feed, message: str, linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd"))
    with pytest.raises(UsageError, match=message):
        trainer.step(feed)


def test_feeds_may_be_wider_than_the_graph_is(linear: ir.Model) -> None:
    model = with_optimizer(linear, "kind=sgd")
    feed = batch(4)
    wide = {name: array.astype(np.float64) for name, array in feed.items()}
    assert Trainer(model).step(wide) == Trainer(model).step(feed)
    assert Trainer(model).run(wide)["loss"] == Trainer(model).run(feed)["loss"]


def test_feeds_may_be_of_any_layout(linear: ir.Model) -> None:
    model = with_optimizer(linear, "kind=sgd")
    feed = batch(4)
    turned = {name: np.asfortranarray(array) for name, array in feed.items()}
    assert Trainer(model).step(turned) == Trainer(model).step(feed)


def test_a_rate_that_is_no_number(linear: ir.Model) -> None:
    trainer = Trainer(with_optimizer(linear, "kind=sgd"), learning_rate=lambda step: float("nan"))
    with pytest.raises(UsageError, match="learning rate of step 1 is nan"):
        trainer.step(batch(2))


def test_a_checkpoint_of_another_graph(linear: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    Trainer(with_optimizer(ir.from_proto(linear_regression()), "kind=sgd")).save(path)
    trainer = Trainer(with_optimizer(linear, "kind=momentum"))
    with pytest.raises(UsageError, match=r"state\.npz: a checkpoint of another training graph"):
        trainer.restore(path)


def test_models_that_cannot_be_trained(linear: ir.Model) -> None:
    with pytest.raises(UsageError, match="no training graph; add-optimizer makes one"):
        Trainer(linear)
    model = with_optimizer(linear, "kind=sgd")
    loss = next(value for value in model.graph.outputs if value.name == "loss")
    loss.name = "lost"
    with pytest.raises(InvalidModelError, match="no output 'loss' to train on"):
        Trainer(model)


def test_a_loss_of_many_numbers(linear: ir.Model) -> None:
    model = with_optimizer(linear, "kind=sgd loss=y")
    with pytest.raises(InvalidModelError, match=r"loss 'y' is float32\[N,2\], wanted one number"):
        Trainer(model, config=DEPLOYMENT)


@pytest.mark.parametrize("rate", [-0.1, float("inf"), "fast"])
def test_a_learning_rate_is_a_number_that_is_not_negative(
    linear: ir.Model, rate: float | str
) -> None:
    def schedule(_: int) -> float:
        return rate  # type: ignore[return-value]

    trainer = Trainer(with_optimizer(linear, "kind=sgd"), learning_rate=schedule)
    with pytest.raises(UsageError, match=r"learning rate of step 1 is .*: it has to be a number"):
        trainer.step(batch(2))
