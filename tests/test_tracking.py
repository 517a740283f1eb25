"""The callbacks of training: `Tracking`, which sends it to a tracker, and `Every`."""

import jax
import numpy as np
import pytest

import eqmdm


PICTURE = np.zeros((8, 9, 3), np.uint8)
CONFIG = {"steps": 4, "device": {"kind": "cpu"}}


class Memory:
    """A tracker that keeps what it is given, and fails at one step."""

    def __init__(self, fails_at=None):
        self.calls, self._fails_at = [], fails_at

    def config(self, values):
        self.calls.append(("config", values))

    def scalars(self, step, values):
        if step == self._fails_at:
            raise ConnectionError("the server is away")
        self.calls.append((step, values))

    def pictures(self, step, values):
        self.calls.append((step, sorted(values)))


OPTIMISER = eqmdm.make_optimiser()


def _fit(*callbacks, steps=4, **settings):
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    network = eqmdm.nn.MLP((2,), 1, width=4, depth=1, key=jax.random.key(1))
    eqmdm.fit(
        eqmdm.NoiseModel(network, eqmdm.VPSDE()),
        x,
        key=jax.random.key(0),
        steps=steps,
        batch_size=4,
        # Of all tests, so that the step compiles once.
        optimiser=OPTIMISER,
        log_every=2,
        validate_every=4,
        checkpoint_every=4,
        callbacks=callbacks,
        **settings,
    )


def test_tracked_training_has_means_errors_and_options():
    tracker, events = Memory(), []
    tracking = eqmdm.Tracking(tracker, config=CONFIG, loss_name="nats")
    _fit(tracking, events.append, validation=np.ones((5, 2), np.float32))
    assert tracker.calls[0] == ("config", CONFIG)
    assert [call[0] for call in tracker.calls[1:]] == [2, 4, 4]
    logs = [event for event in events if event.kind == "log"]
    for event, (_, values) in zip(logs, tracker.calls[1:], strict=False):
        assert values["train/nats"] == pytest.approx(np.mean(event.metrics["loss"]))
        assert values["train/steps_per_second"] == event.steps_per_second
        assert {f"train/{n}" for n in event.metrics} - {"train/loss"} < values.keys()
    (loss,) = (e.evaluation.loss for e in events if e.kind == "validation")
    _, values = tracker.calls[3]
    assert values["validation/nats"] == pytest.approx(loss.mean())
    error = loss.std(ddof=1) / np.sqrt(len(loss))
    assert values["validation/nats_standard_error"] == pytest.approx(error)


def test_failing_tracker_warns_once_and_training_goes_on():
    tracker, other = Memory(fails_at=2), Memory()
    tracker.pictures = tracker.config = lambda *_: 1 / 0
    trackings = [eqmdm.Tracking(tracker), eqmdm.Tracking(other)]
    with pytest.warns(UserWarning) as shown:
        _fit(*trackings, steps=6)
        trackings[0].pictures(6, {"samples": PICTURE})
    (warning,) = shown
    assert str(warning.message).startswith("Memory failed (ZeroDivisionError: ")
    assert [call[0] for call in tracker.calls] == [4, 6]
    assert [call[0] for call in other.calls] == ["config", 2, 4, 6]


def test_numbers_that_are_not_finite_are_left_out():
    tracker = Memory()
    summary = {"total": (-2.0, float("nan")), "nats": (2.0, 0.5)}
    eqmdm.Tracking(tracker).estimates(3, "test", summary)
    assert tracker.calls[-1] == (
        3,
        {"test/total": -2.0, "test/nats": 2.0, "test/nats_standard_error": 0.5},
    )


def test_only_the_first_process_tracks(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    tracker = Memory()
    eqmdm.Tracking(tracker).scalars(1, {"a": 1.0})
    assert tracker.calls == []


def test_tracker_without_its_methods_is_rejected(unchecked):
    del unchecked
    for wrong in (object(), Memory):
        with pytest.raises(
            TypeError, match="`tracker` must be an object with the meth"
        ):
            eqmdm.Tracking(wrong)


# --- Callbacks at some of the steps --------------------------------------------------


def test_callback_every_few_steps_is_called_at_these_and_can_stop():
    called = []

    def measure(event):
        called.append((event.kind, event.step))
        return event.step == 6

    everything = []
    record = lambda event: everything.append((event.kind, event.step))
    _fit(eqmdm.Every(3, measure), record, steps=20)
    assert called == [("step", 3), ("step", 6)]
    assert everything[-1] == ("end", 6)


def test_call_of_several_steps_ends_where_a_callback_is_due(monkeypatch):
    monkeypatch.setattr("eqmdm._training.loop.steps_per_call", lambda: 10)
    called = []
    _fit(eqmdm.Every(6, lambda event: called.append(event.step)), steps=20)
    assert called == [6, 12, 18]


def test_callback_every_no_step_is_rejected():
    with pytest.raises(ValueError, match="`n` must be at least 1; got 0"):
        eqmdm.Every(0, print)
