"""The live stream without any widget: a driver in, frames out, and three threads with bounded queues between them.

    live = Live(model, reference, Motion((128, 96)), show)   # show(shown) is called in a thread of its own
    live.start()
    live.change(guidance=3.0)
    live.stop()

The driving thread samples the driver at an even rate, the engine thread draws a group of samples and makes frames of
it, the showing thread hands frames out at an even pace, at most `in_flight` before the first of them is `drawn`.
Where a queue is full its oldest element is dropped: latency stays bounded, and what was dropped is counted.

Let no other thread of the process compute on several cores before (`torch.set_num_threads(1)` in the first cell):
libgomp keeps a pool of threads for each thread that did, and where all pools together are larger than the machine its
barriers sleep where they used to spin: 14 frames/s instead of 31 on two cores.
"""

import atexit
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from rainlab import runs
from rainlab.data.video import write_video
from rainlab.method.rain import RAIN
from rainlab.method.stream import Stream
from rainlab.show.drivers import Driver

VERSION = 1  # of recordings' runs
FASTEST, HEADROOM = 60.0, 0.95  # samples a second at most, and which share of what the engine can make is asked of it
FIRST = 16.0  # frames a second that the engine is taken to make until it is known
GIVE_UP = 5.0  # seconds without a frame being drawn, after which nobody is taken to be watching
RECENT = 3.0  # seconds over which rates are measured
RESTARTS = ("window", "groups", "steps_per_group", "seed")  # settings that begin the stream anew


class Shown(NamedTuple):
    """A frame to be shown: its number, the picture, the newest condition picture, and when its own was taken."""

    number: int
    frame: np.ndarray
    condition: np.ndarray
    taken: float


@dataclass(frozen=True)
class Statistics:
    """How a live stream is doing. Rates are per second over the last RECENT seconds, latencies in seconds.

    asked_rate: samples to be taken a second. latencies: of the last frames drawn, from the driver's sample until
    `drawn` was called. parts: share of the time since the start that was spent in the driver, in the engine's parts
    and in showing, which overlap.
    """

    state: str
    sampled: int
    made: int
    shown: int
    dropped_samples: int
    dropped_frames: int
    waiting: int  # samples and frames in the queues
    asked_rate: float
    driver_rate: float
    engine_rate: float
    shown_rate: float
    capacity: float  # frames a second that the engine could make if it never waited
    latencies: np.ndarray
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def overloaded(self) -> bool:
        """More samples are asked for than the engine can make frames of: the oldest are dropped."""
        return self.state == "running" and self.asked_rate > 1.05 * self.capacity > 0

    def latency(self, quantile: float) -> float | None:
        """A quantile of the latencies, None before the first frame."""
        return float(np.quantile(self.latencies, quantile)) if len(self.latencies) else None


class Live:
    """A stream that runs by itself until it is stopped, fails, its driver ends or nobody draws its frames any more.

    Args:
        model: as for :class:`rainlab.method.stream.Stream`. reference: uint8 ``(h, w, 3)``.
        driver: see :mod:`rainlab.show.drivers`; called every 1/rate seconds with the seconds of stream time, which
            stands still while it is paused.
        show: called with a :class:`Shown`; `drawn` must be called (from anywhere) when that frame is to be seen.
        rate: samples a second; None: as fast as the engine can, with some headroom.
        changed: called with the new state, from any thread, when it has changed.
        in_flight: frames that may be on their way to the viewer. threads: that the engine computes with; None: the
            environment variable OMP_NUM_THREADS, else one for each core but one, which the browser needs.
        engine: makes a stream of model and options.
        options: of the Stream, which is a fast one if they do not say otherwise.

    ``state`` is "stopped", "running", "paused", "ended" (the driver came to its end, all its frames were shown),
    "unwatched" or "failed", and then ``error`` says why. In all but "running" and "paused" no thread is alive.
    """

    def __init__(
        self,
        model: RAIN,
        reference: np.ndarray,
        driver: Driver,
        show: Callable[[Shown], None],
        rate: float | None = None,
        changed: Callable[[str], None] | None = None,
        in_flight: int = 2,
        threads: int | None = None,
        engine: Callable[..., Stream] = Stream,
        **options: Any,
    ):
        self.model, self.rate, self.in_flight, self._engine = model, rate, in_flight, engine
        self._cores = threads or int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) - 1))
        self._show, self._notify = show, changed or (lambda state: None)
        self._driver, self._reference, self._options = driver, reference, {"fast": True} | options
        self._stream = self._new_stream()
        self.state, self.error = "stopped", None
        self._retired: list[Driver] = []  # replaced, and closed by the thread that may still be calling them
        self.taps: list[Callable[[np.ndarray], None]] = []  # called with every frame the engine makes, in its thread
        self._threads: list[threading.Thread] = []
        self._lock = threading.Condition(threading.RLock())
        self._commands: deque[tuple[Callable[[], None], Future]] = deque()
        self._forget()

    def _new_stream(self) -> Stream:
        stream = self._engine(self.model, **self._options)
        stream.reference(self._reference)
        return stream

    def _forget(self) -> None:
        """Empty queues, numbers from 0: where a stream begins."""
        group = self._stream.group_size
        self._samples: deque[tuple[Driver, Any, float]] = deque(maxlen=2 * group)
        self._frames: deque[tuple[np.ndarray, float]] = deque(maxlen=2 * group)
        self._taken: deque[float] = deque()  # of the samples whose frames are in the window
        self._flying: dict[int, float] = {}
        self._condition: np.ndarray | None = None
        self._sampled = self._made = self._shown = self._lost_samples = self._lost_frames = 0
        self._latencies: deque[float] = deque(maxlen=300)
        self._ticks: deque[float] = deque(maxlen=8)  # seconds the engine took for its last groups
        self._when = {name: deque(maxlen=256) for name in ("sampled", "made", "shown")}
        self._spent = {"driver": 0.0, "display": 0.0}
        self._clock, self._since, self._resumed = 0.0, time.perf_counter(), time.perf_counter()
        self._stream.seconds = dict.fromkeys(self._stream.seconds, 0.0)
        self._ending = False

    # -- steering, from any thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, or go on after a pause; does nothing while it runs."""
        with self._lock:
            if self.state == "running":
                return
            self._since = self._resumed = time.perf_counter()
            if self.state != "paused":
                self.error = None
                self._stream.reset()
                self._forget()
                names = {"driver": self._drive, "engine": self._work, "display": self._display}
                self._threads = [
                    threading.Thread(target=self._guarded, args=(body,), name=f"rainlab-{name}", daemon=True)
                    for name, body in names.items()
                ]
                atexit.register(self.stop)
                for thread in self._threads:
                    thread.start()
            self._set("running")

    def pause(self) -> None:
        """Hold the picture, and the driver's time; nothing is forgotten."""
        with self._lock:
            if self.state == "running":
                self._clock = self._stream_time()
                self._set("paused")

    def stop(self) -> None:
        """End all threads and close the driver; the stream forgets its window."""
        self._end("stopped")
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        atexit.unregister(self.stop)

    def wait(self, timeout: float | None = None) -> str:
        """Wait until no thread is alive; returns the state then. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError(f"live stream: still {self.state} after {timeout} s; stop() it")
        return self.state

    def reset(self) -> None:
        """Begin the stream anew: window, queues, noise, driver's time and numbers; it goes on running or pausing."""
        self._do(self._begin_anew)

    def reference(self, picture: np.ndarray) -> Future:
        """Set the character, between two groups; the future raises what `Stream.reference` does.

        The picture has to have the size of the one before.
        """

        def act() -> None:
            if np.shape(picture) != self._reference.shape:
                raise ValueError(f"reference: got shape {np.shape(picture)}, expected {self._reference.shape}")
            self._stream.reference(picture)
            self._reference = picture

        return self._do(act)

    def drive(self, driver: Driver) -> None:
        """Go on with another driver; the one before is closed."""
        with self._lock:
            self._retired.append(self._driver)
            self._driver = driver
            if self.state not in ("running", "paused"):
                self._close_drivers()

    def change(self, **settings: Any) -> Future:
        """Change options of the Stream between two groups; those of RESTARTS begin it anew.

        The future raises what the Stream does (ValueError), and then nothing is changed.
        """

        def act() -> None:
            if unknown := settings.keys() - {name for name, value in self.settings.items() if value is not None}:
                raise ValueError(f"settings: got {sorted(unknown)}, expected those of this model: {self.settings}")
            before, self._options = self._options, self._options | settings
            if not settings.keys() & set(RESTARTS):
                for name, value in settings.items():
                    setattr(self._stream, name, value)
                return
            try:
                self._stream = self._new_stream()
            except Exception:
                self._options = before
                raise
            self._begin_anew()

        return self._do(act)

    def drawn(self, number: int) -> None:
        """Say that a frame can be seen now. Unknown numbers (drawn before, or before a reset) are ignored."""
        now = time.perf_counter()
        with self._lock:
            taken = self._flying.pop(number, None)
            if taken is None:
                return
            self._shown += 1
            self._when["shown"].append(now)
            if taken >= self._resumed:
                self._latencies.append(now - taken)
            self._lock.notify_all()

    def statistics(self) -> Statistics:
        """How it is doing now."""
        with self._lock:
            spent = self._spent | self._stream.seconds
            running = max(self._stream_time(), 1e-9)
            return Statistics(
                state=self.state,
                sampled=self._sampled,
                made=self._made,
                shown=self._shown,
                dropped_samples=self._lost_samples,
                dropped_frames=self._lost_frames,
                waiting=len(self._samples) + len(self._frames),
                asked_rate=self._asked(),
                driver_rate=_per_second(self._when["sampled"]),
                engine_rate=_per_second(self._when["made"]),
                shown_rate=_per_second(self._when["shown"]),
                capacity=self._capacity(),
                latencies=np.array(self._latencies),
                parts={part: spent[part] / running for part in ("driver", "guider", "network", "decoder", "display")},
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What the stream runs with: K, p, N, ω, temporal strength and seed."""
        s = self._stream
        return {"window": s.window, "groups": s.groups, "steps_per_group": s.steps_per_group, "seed": s.seed,
                "guidance": s.guidance, "temporal_strength": s.temporal_strength}  # fmt: skip

    # -- the three threads -------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        torch.set_num_threads(1)  # of this thread
        try:
            self._sample()
        finally:
            self._retired.append(self._driver)
            self._close_drivers()

    def _sample(self) -> None:
        due = time.perf_counter()
        while self._wait(lambda: self.state == "running"):
            self._close_drivers()
            with self._lock:
                driver, now, seconds = self._driver, time.perf_counter(), self._stream_time()
            try:
                sample = driver.sample(seconds)
            except StopIteration:
                with self._lock:
                    self._ending = True
                    self._lock.notify_all()
                return
            with self._lock:
                if self.state != "running":
                    continue
                self._lost_samples += len(self._samples) == self._samples.maxlen
                self._samples.append((driver, sample, now))
                self._sampled += 1
                self._when["sampled"].append(now)
                self._lock.notify_all()
            due = max(due + 1 / self._asked(), now)
            self._sleep_until(due)

    def _work(self) -> None:
        torch.set_num_threads(self._cores)  # of this thread

        def ready() -> bool:
            enough = len(self._samples) >= self._stream.group_size or self._ending
            return bool(self._commands) or (self.state == "running" and enough)

        while self._wait(ready):
            with self._lock:
                while self._commands:
                    act, done = self._commands.popleft()
                    _settle(act, done)
                group = self._stream.group_size
                if self.state != "running" or (len(self._samples) < group and not self._ending):
                    continue
                chosen = [self._samples.popleft() for _ in range(min(group, len(self._samples)))]
                self._taken.extend(taken for *_, taken in chosen)
            start = time.perf_counter()
            conditions = [picture for driver, some in groupby(chosen, lambda each: each[0])
                          for picture in driver.draw([sample for _, sample, _ in some])]  # fmt: skip
            self._spent["driver"] += time.perf_counter() - start
            made = self._stream.push(conditions)
            if last := not chosen or len(chosen) < group:
                made += self._stream.flush()
            now = time.perf_counter()
            for tap in list(self.taps):
                for frame in made:
                    tap(frame)
            with self._lock:
                self._condition = conditions[-1] if conditions else self._condition
                if made:  # a window that is being filled takes less
                    self._ticks.append(now - start)
                for frame in made:
                    self._lost_frames += len(self._frames) == self._frames.maxlen and not last
                    if last:  # all that is left, however many
                        self._frames = deque(self._frames)
                    self._frames.append((frame, self._taken.popleft()))
                    self._when["made"].append(now)
                self._made += len(made)
                self._lock.notify_all()
            if last:
                return

    def _display(self) -> None:
        due = time.perf_counter()
        while self._wait(lambda: self.state == "running" and (bool(self._frames) or self._over())):
            with self._lock:
                if not self._frames and self._over():
                    break
                if self.state != "running" or not self._frames:
                    continue
                # An even pace, though frames come in groups; a little faster while more than a group is waiting.
                pace = min(self._asked(), self._capacity() or FASTEST)
                pace *= 1.25 if len(self._frames) > self._stream.group_size else 1.0
            self._sleep_until(due)
            if not self._wait(lambda: self.state == "running" and len(self._flying) < self.in_flight, GIVE_UP):
                return self._end("unwatched") if self.state == "running" else None
            with self._lock:
                if self.state != "running" or not self._frames:  # paused, reset or stopped meanwhile
                    continue
                frame, taken = self._frames.popleft()
                number, condition = self._number, self._condition
                self._number += 1
                self._flying[number] = taken
            start = time.perf_counter()
            self._show(Shown(number, frame, condition, taken))
            with self._lock:
                self._spent["display"] += time.perf_counter() - start
            due = max(due + 1 / pace, start)
        if self.state == "running":
            self._wait(lambda: not self._flying, GIVE_UP)
            self._end("ended")

    _number = 0  # of the next frame to be shown; never begins anew, so that late answers fit no new frame

    # -- between them ------------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        """The driver has ended and the engine has given its last frame."""
        return self._ending and not self._threads[1].is_alive()

    def _wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until it holds; False when the threads have to end, or the time is over while it is running."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while self.state in ("running", "paused"):
                if condition():
                    return True
                if self.state == "paused" and timeout is not None:
                    deadline = time.monotonic() + timeout
                left = 0.5 if deadline is None else min(0.5, deadline - time.monotonic())
                if left <= 0:
                    return False
                self._lock.wait(left)
        return False

    def _sleep_until(self, due: float) -> None:
        """Sleep, but wake at once where the threads have to end."""
        with self._lock:
            while self.state in ("running", "paused") and (left := due - time.perf_counter()) > 0:
                self._lock.wait(left)

    def _asked(self) -> float:
        """Samples to take a second."""
        if self.rate:
            return self.rate
        return min(max(HEADROOM * (self._capacity() or FIRST), 1.0), FASTEST)

    def _capacity(self) -> float:
        """Frames a second that the engine could make if it never waited; 0 while that is not known."""
        busy = sum(self._ticks)
        return len(self._ticks) * self._stream.group_size / busy if busy else 0.0

    def _stream_time(self) -> float:
        return self._clock + (time.perf_counter() - self._since if self.state == "running" else 0.0)

    def _begin_anew(self) -> None:
        with self._lock:
            self._stream.reset()
            self._forget()

    def _do(self, act: Callable[[], None]) -> Future:
        """Have the engine's thread act between two groups; without threads, here and now."""
        done: Future = Future()
        with self._lock:
            if self.state in ("running", "paused") and not self._ending:
                self._commands.append((act, done))
                self._lock.notify_all()
            else:
                _settle(act, done)
        return done

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:  # shown to the user: whatever a driver or a network raises
            self.error = error
            self._end("failed")

    def _end(self, state: str) -> None:
        with self._lock:
            if self.state not in ("running", "paused"):
                return
            self._clock = self._stream_time()
            self._set(state)
            while self._commands:
                _settle(*self._commands.popleft())

    def _close_drivers(self) -> None:
        while self._retired:
            self._retired.pop().close()

    def _set(self, state: str) -> None:
        self.state = state
        self._lock.notify_all()
        self._notify(state)


def _settle(act: Callable[[], None], done: Future) -> None:
    try:
        act()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _per_second(when: deque[float]) -> float:
    """Events a second among those of the last RECENT seconds."""
    start = time.perf_counter() - RECENT
    recent = [moment for moment in when if moment >= start]
    after = sum(moment > recent[0] for moment in recent) if recent else 0  # frames come in groups
    return after / (recent[-1] - recent[0]) if after else 0.0


class Recording:
    """Every frame a live stream makes from now on, kept on disk; `finish` makes a film and a run of it."""

    def __init__(self, live: Live):
        self.live, self.frames = live, 0
        self._raw = tempfile.TemporaryFile()  # noqa: SIM115  closed by finish
        self._shape: tuple[int, ...] = ()
        self._start = time.perf_counter()
        live.taps.append(self._add)

    def _add(self, frame: np.ndarray) -> None:
        self._shape, self.frames = frame.shape, self.frames + 1
        self._raw.write(frame.tobytes())

    def finish(self, preset: str, driver: str) -> runs.Run:
        """Stop recording; the finished run "live" holds `film.mp4` and the stream's numbers.

        Raises ValueError where no frame came.
        """
        self.live.taps.remove(self._add)
        seconds = time.perf_counter() - self._start
        with self._raw:
            if not self.frames:
                raise ValueError("recording: got no frame, expected at least one: record while the stream is running")
            date = datetime.now(UTC).isoformat(timespec="milliseconds")
            config = {"preset": preset, "driver": driver, "date": date} | self.live.settings
            run = runs.open_run("live", config, VERSION)
            self._raw.flush()
            frames = np.memmap(self._raw, np.uint8, "r", shape=(self.frames, *self._shape))
            rate = max(self.frames / seconds, 1.0)
            write_video(run.path / "film.mp4", frames, rate)
        record(run, self.live.statistics())
        run.record("frames", self.frames)
        return run.finish()


def record(run: runs.Run, statistics: Statistics) -> None:
    """Put a live stream's numbers into a run: counts, rates per second, latency in seconds, share of time by part."""
    for name in (item.name for item in fields(statistics)):
        if isinstance(value := getattr(statistics, name), int | float):
            run.record(name, value)
    for quantile in (0.5, 0.95):
        if (latency := statistics.latency(quantile)) is not None:
            run.record("latency", latency, n=len(statistics.latencies), quantile=quantile)
    for part, share in statistics.parts.items():
        run.record("share_of_time", share, part=part)
