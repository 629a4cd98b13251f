"""The live stream: what comes in comes out, in order, bounded, and no thread is left."""

import threading
import time

import micro
import numpy as np
import pytest

from rainlab import runs
from rainlab.data.video import probe
from rainlab.method.stream import animate
from rainlab.show import live as module
from rainlab.show.drivers import Driver
from rainlab.show.live import Live, record

MODEL = micro.model()
CONDITIONS = micro.pictures(64, seed=5)
STREAM = {"window": 8, "groups": 4, "guidance": 2.0}


class Numbered(Driver):
    """Sample i is number i, its picture a fixed random one; ends after `count`; patient: waits while frames do."""

    def __init__(self, count=None, patient=True):
        self.count, self.patient, self.asked, self.closed = count, patient, [], 0
        self.live = None

    def sample(self, seconds):
        while self.patient and self.live.statistics().waiting > 3 and self.live.state == "running":
            time.sleep(0.005)
        if len(self.asked) == self.count:
            raise StopIteration
        self.asked.append(seconds)
        return len(self.asked) - 1

    def draw(self, samples):
        return CONDITIONS[[number % len(CONDITIONS) for number in samples]]

    def close(self):
        self.closed += 1


class Viewer(Live):
    """A live stream that draws what it is shown at once, and keeps it."""

    def __init__(self, driver, rate=60.0, draws=True, **options):
        self.seen, self.states, self.draws = [], [], draws
        super().__init__(MODEL, micro.pictures(seed=9), driver, self.see, rate, self.states.append, **STREAM | options)
        driver.live = self

    def see(self, shown):
        self.seen.append(shown)
        if self.draws:
            self.drawn(shown.number)

    def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s: {self.state}, {self.error}, {self.statistics()}"
            time.sleep(0.01)

    def more(self, count=4):
        """Wait for so many more frames."""
        goal = len(self.seen) + count
        self.until(lambda: len(self.seen) >= goal)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("rainlab-")]


@pytest.fixture
def endless():
    live = Viewer(Numbered())
    live.start()
    yield live
    live.stop()


@pytest.mark.parametrize("count", [0, 3, 8, 13])
def test_every_sample_becomes_a_frame_in_order(count):
    live = Viewer(Numbered(count))
    live.start()
    assert live.wait(60) == "ended" and live.states == ["running", "ended"]
    now = live.statistics()
    assert (now.sampled, now.made, now.shown, now.dropped_samples, now.dropped_frames) == (count, count, count, 0, 0)
    assert [shown.number for shown in live.seen] == list(range(count))
    assert sorted(shown.taken for shown in live.seen) == [shown.taken for shown in live.seen]
    if count:
        plain = animate(MODEL, micro.pictures(seed=9), CONDITIONS[:count], **STREAM)
        shown = np.stack([shown.frame for shown in live.seen]).astype(int)
        assert np.abs(shown - plain).max() <= 1  # rounding: seen on one processor, in one value of 30,000
    assert live._driver.closed == 1 and len(now.latencies) == count and (now.latencies > 0).all()
    assert now.parts.keys() == {"driver", "guider", "network", "decoder", "display"}


def test_it_can_be_started_again_and_makes_the_same():
    films = []
    for _ in range(2):
        live = Viewer(Numbered(9))
        live.start()
        live.wait(60)
        films.append(live.seen)
    live.seen, live._driver.asked = [], []
    live.start()
    assert live.wait(60) == "ended"
    first, second, third = (np.stack([s.frame for s in film]) for film in (*films, live.seen))
    assert np.array_equal(first, second) and np.array_equal(first, third)


def test_a_pause_holds_picture_and_time(endless):
    endless.more()
    endless.pause()
    endless.until(lambda: not endless._flying)
    time.sleep(0.1)  # what was on its way to be shown
    shown, clock = len(endless.seen), endless._stream_time()
    time.sleep(0.5)
    assert len(endless.seen) == shown and endless._stream_time() == clock and endless.state == "paused"
    asked = len(endless._driver.asked)
    endless.start()
    endless.more()
    assert endless._driver.asked[asked] < clock + 0.4 and endless.states == ["running", "paused", "running"]


def test_a_reset_begins_anew_with_the_same_noise(endless):
    endless.more(6)
    endless.reset()
    endless._driver.asked.clear()
    endless.until(lambda: endless.statistics().shown in range(1, 6))
    assert endless.seen[-1].number >= 6  # numbers go on, so that a late answer fits no new frame


def test_settings_change_while_it_streams(endless):
    endless.more()
    endless.change(guidance=3.0, temporal_strength=0.5).result(30)
    assert endless.settings["guidance"] == 3.0 and endless.settings["temporal_strength"] == 0.5
    stream = endless._stream
    endless.more()
    endless.change(window=4, groups=2, seed=7).result(30)
    assert (endless.settings["window"], endless.settings["groups"], endless.settings["seed"]) == (4, 2, 7)
    assert endless.settings["guidance"] == 3.0 and endless._stream is not stream
    endless.more()
    assert endless.state == "running"


def test_what_the_stream_refuses_changes_nothing(endless):
    before = endless.settings
    for wrong in ({"window": 7}, {"steps_per_group": 0}, {"colour": 1}):
        with pytest.raises(ValueError, match="got"):
            endless.change(**wrong).result(30)
    assert endless.settings == before
    with pytest.raises(ValueError, match="got"):
        endless.reference(micro.pictures(size=(8, 8))).result(30)
    endless.more()
    assert endless.state == "running"


def test_the_character_changes_while_it_streams(endless):
    endless.more()
    endless.reference(micro.pictures(seed=3)).result(30)
    endless.more()
    assert endless.state == "running"


def test_a_new_driver_takes_over_and_the_old_one_is_closed(endless):
    old, new = endless._driver, Numbered()
    new.live = endless
    endless.drive(new)
    endless.until(lambda: len(new.asked) > 2 and old.closed == 1)
    assert new.closed == 0
    endless.stop()
    assert (old.closed, new.closed) == (1, 1)


def test_overload_drops_the_oldest_and_queues_stay_short():
    class Slow(Numbered):
        def draw(self, samples):
            time.sleep(0.3)
            assert samples == sorted(samples)
            return super().draw(samples)

    live = Viewer(Slow(patient=False))
    live.start()
    live.until(lambda: live.statistics().dropped_samples > 20)
    live.until(lambda: live.statistics().overloaded)
    assert live.statistics().waiting <= 8
    live.stop()


def test_a_viewer_that_draws_nothing_gets_two_frames_and_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "GIVE_UP", 0.5)
    live = Viewer(Numbered(), draws=False)
    live.start()
    assert live.wait(60) == "unwatched"
    assert [shown.number for shown in live.seen] == [0, 1] and live._driver.closed == 1
    live.drawn(0)
    live.drawn(99)
    assert live.statistics().shown == 1


@pytest.mark.parametrize("where", ["sample", "draw", "show"])
def test_an_exception_ends_it_and_is_told(where):
    def broken(*_):
        raise OSError("no camera")

    live = Viewer(Numbered())
    if where == "show":
        live._show = broken
    else:
        setattr(live._driver, where, broken)
    live.start()
    assert live.wait(60) == "failed" and str(live.error) == "no camera" and live._driver.closed == 1
    assert live.change(guidance=4.0).result(1) is None  # without threads it acts at once
    if where != "show":
        again = Numbered(4)
        again.live = live
        live.drive(again)
        live.start()
        assert live.wait(60) == "ended" and live.error is None


def test_waiting_for_an_endless_stream_is_not_forever(endless):
    with pytest.raises(TimeoutError, match="still running"):
        endless.wait(0.2)


def test_a_recording_is_a_run_with_a_film():
    live = Viewer(Numbered(12))
    tape = module.Recording(live)
    live.start()
    live.wait(60)
    run = tape.finish("micro", "numbered")
    assert probe(run.path / "film.mp4")["frames"] == 12 and not live.taps
    assert runs.get(run.id).finished
    tape = module.Recording(live)
    with pytest.raises(ValueError, match="got no frame"):
        tape.finish("micro", "numbered")
    assert not live.taps


def test_numbers_of_a_stream_are_recorded():
    live = Viewer(Numbered(10))
    live.start()
    live.wait(60)
    run = runs.open_run("soak", {"what": "test"}, 1)
    record(run, live.statistics())
    rows = {(row["metric"], row.get("part") or row.get("quantile")): row["value"] for row in run.finish().metrics()}
    assert rows["made", None] == rows["shown", None] == 10
    assert 0 < rows["latency", 0.5] <= rows["latency", 0.95] and rows["share_of_time", "network"] > 0
