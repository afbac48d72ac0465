"""Where the utterances of a live stream begin and end, on the sample clock.

Both segmenters take the speech probabilities of a voice activity detector, one for each window of
:data:`speech.media.segmentation.WINDOW_SAMPLES`, and no wall clock: a file
sent at once is cut as if it were spoken live. Positions are samples since the stream began.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from speech.audio import SAMPLE_RATE
from speech.errors import InvalidRequest
from speech.media.segmentation import WINDOW_SAMPLES

LONGEST_UTTERANCE_S = 30.0
"""The most that ``max_utterance_s`` may be, and so what a recogniser has to hold."""
PAUSE_WINDOWS = 2
"""Windows without speech that make a pause to cut in, 64 ms; server B's rule asks for 40 ms."""


@dataclass(frozen=True, slots=True)
class SpeechStart:
    """Speech begins at ``at``, its utterance with the pre-roll at ``begin``."""

    at: int
    begin: int


@dataclass(frozen=True, slots=True)
class Utterance:
    """A finished utterance [begin, end).

    ``detected_at`` is the position of the stream at which its end was detected; the last
    ``trailing_silence`` samples before that hold no speech. ``spoken`` is False where nobody spoke
    in it; after one that was ``cut`` the next begins at ``end`` without a gap.
    """

    begin: int
    end: int
    detected_at: int
    trailing_silence: int = 0
    spoken: bool = True
    cut: bool = False


@dataclass(frozen=True, slots=True)
class SpeechEnd:
    """Speech ended at ``at``, its utterance ends with the tail at ``end``."""

    at: int
    end: int


Mark = SpeechStart | Utterance | SpeechEnd


class Segmenter(Protocol):
    """Cuts a stream into utterances."""

    @property
    def begin(self) -> int | None:
        """Where the utterance under way begins, None between utterances."""
        ...

    @property
    def keep_from(self) -> int:
        """No later mark will reach back before this position."""
        ...

    def feed(self, probabilities: Iterable[float]) -> list[Mark]:
        """The marks of the next windows."""
        ...

    def finish(self, end: int) -> list[Mark]:
        """End the utterance under way at ``end``; the stream may continue after it."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """When an utterance begins and ends; seconds, and Silero's probabilities.

    Speech begins where the probability reaches ``threshold`` for ``min_speech_s`` and pauses where
    it is below ``end_threshold``; a pause of ``silence_s`` ends the utterance once it has lasted
    ``min_utterance_s``. It keeps ``pre_roll_s`` before the speech and ``tail_s`` after it. One
    that reaches ``max_utterance_s`` is cut in a pause. With ``webrtc_mode``, 0 to 3, WebRTC's
    detector has to agree that somebody speaks.
    """

    threshold: float = 0.5
    end_threshold: float = 0.35
    min_speech_s: float = 0.1
    silence_s: float = 0.6
    min_utterance_s: float = 0.0
    max_utterance_s: float = 15.0
    pre_roll_s: float = 0.3
    tail_s: float = 0.25
    webrtc_mode: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequest."""
        if not 0 < self.end_threshold <= self.threshold < 1:
            raise InvalidRequest("endpointing: 0 < end_threshold <= threshold < 1 must hold")
        for name, low, high in (
            ("min_speech_s", 0.0, 2.0),
            ("silence_s", 0.1, 10.0),
            ("min_utterance_s", 0.0, 10.0),
            ("max_utterance_s", 2.0, LONGEST_UTTERANCE_S),
            ("pre_roll_s", 0.0, 2.0),
            ("tail_s", 0.0, 2.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"endpointing: {name} must be between {low:g} and {high:g}")
        if self.webrtc_mode not in (None, 0, 1, 2, 3):
            raise InvalidRequest("endpointing: webrtc_mode must be 0, 1, 2 or 3")


class Endpointer:
    """Utterances are what is spoken between two pauses; silence belongs to none."""

    def __init__(self, options: EndpointOptions, begin: int = 0) -> None:
        """No utterance reaches back before ``begin``, where the audio to come starts."""
        self._options = options
        # One less: an utterance may begin between two windows.
        self._longest = round(options.max_utterance_s * SAMPLE_RATE) // WINDOW_SAMPLES - 1
        self._shortest = round(options.min_utterance_s * SAMPLE_RATE)
        self._onset = max(_windows(options.min_speech_s), 1)
        self._silence = max(_windows(options.silence_s), 1)
        # Whole windows: a stream that is resumed at the end of an utterance is cut as before.
        self._tail = _windows(options.tail_s) * WINDOW_SAMPLES
        self._window = begin // WINDOW_SAMPLES
        self._floor = begin
        self._begin: int | None = None
        self._pending: list[float] = []  # since the utterance began, at most ``_longest``
        self._run = 0
        self._silent_since = 0

    @property
    def begin(self) -> int | None:
        """See :class:`Segmenter`."""
        return self._begin

    @property
    def keep_from(self) -> int:
        """See :class:`Segmenter`."""
        if self._begin is not None:
            return self._begin
        reach = self._window * WINDOW_SAMPLES - round(self._options.pre_roll_s * SAMPLE_RATE)
        return max(self._floor, reach - (self._onset + 1) * WINDOW_SAMPLES)

    def feed(self, probabilities: Iterable[float]) -> list[Mark]:
        """See :class:`Segmenter`."""
        marks: list[Mark] = []
        for probability in probabilities:
            step = self._wait_for_speech if self._begin is None else self._extend
            marks += step(probability)
        return marks

    def finish(self, end: int) -> list[Mark]:
        """See :class:`Segmenter`."""
        begin, self._begin, self._run = self._begin, None, 0
        self._floor = max(self._floor, end)
        if begin is None or end <= begin:
            return []
        spoken_until = min(max(self._silent_since * WINDOW_SAMPLES, begin), end)
        return [SpeechEnd(spoken_until, end), Utterance(begin, end, end, end - spoken_until)]

    def _wait_for_speech(self, probability: float) -> list[Mark]:
        self._run = self._run + 1 if probability >= self._options.threshold else 0
        self._window += 1
        if self._run < self._onset:
            return []
        first = self._window - self._run
        at = max(first * WINDOW_SAMPLES, self._floor)
        begin = max(at - round(self._options.pre_roll_s * SAMPLE_RATE), self._floor, 0)
        self._begin, self._silent_since = begin, self._window
        lead = self._window - _ceil(begin)
        self._pending = [0.0] * (lead - self._run) + [1.0] * self._run
        return [SpeechStart(at, begin)]

    def _extend(self, probability: float) -> list[Mark]:
        assert self._begin is not None
        self._window += 1
        self._pending.append(probability)
        if probability >= self._options.end_threshold:
            self._silent_since = self._window
        now = self._window * WINDOW_SAMPLES
        lasted = now - self._begin
        silence = self._window - self._silent_since
        if silence >= self._silence and lasted >= self._shortest:
            # One that a cut began in this very pause is all silence.
            spoken_until = max(self._silent_since * WINDOW_SAMPLES, self._begin)
            end = min(max(spoken_until + self._tail, self._begin + WINDOW_SAMPLES), now)
            mark = Utterance(self._begin, end, now, now - spoken_until)
            self._begin, self._floor, self._run = None, end, 0
            return [SpeechEnd(spoken_until, end), mark]
        if len(self._pending) < self._longest:
            return []
        return [self._cut()]

    def _cut(self) -> Utterance:
        """The utterance up to its last pause; what follows the pause begins the next one."""
        assert self._begin is not None
        windows = cut_after(self._pending, self._options.end_threshold)
        end = (self._window - len(self._pending) + windows) * WINDOW_SAMPLES
        mark = Utterance(self._begin, end, self._window * WINDOW_SAMPLES, cut=True)
        self._begin, self._pending = end, self._pending[windows:]
        return mark


class PauseCutter:
    """Utterances follow each other without a gap: all audio is in one, silence too.

    The buffer of server B: nothing is cut until the longest utterance is full.
    """

    def __init__(self, max_utterance_s: float, threshold: float = 0.5) -> None:
        self._longest = round(max_utterance_s * SAMPLE_RATE) // WINDOW_SAMPLES - 1
        self._threshold = threshold
        self._window = 0
        self._begin = 0
        self._pending: list[float] = []

    @property
    def begin(self) -> int:
        """See :class:`Segmenter`."""
        return self._begin

    @property
    def keep_from(self) -> int:
        """See :class:`Segmenter`."""
        return self._begin

    def feed(self, probabilities: Iterable[float]) -> list[Mark]:
        """See :class:`Segmenter`."""
        marks: list[Mark] = []
        for probability in probabilities:
            self._window += 1
            self._pending.append(probability)
            if len(self._pending) < self._longest:
                continue
            windows = self._silence_before() or cut_after(self._pending, self._threshold)
            end = (self._window - len(self._pending) + windows) * WINDOW_SAMPLES
            spoken = max(self._pending[:windows]) >= self._threshold
            now = self._window * WINDOW_SAMPLES
            marks.append(Utterance(self._begin, end, now, spoken=spoken, cut=True))
            self._begin, self._pending = end, self._pending[windows:]
        return marks

    def finish(self, end: int) -> list[Mark]:
        """See :class:`Segmenter`; an incomplete window at the end counts as speech."""
        begin, self._begin = self._begin, max(end, self._begin)
        partial = end > self._window * WINDOW_SAMPLES
        spoken = partial or max(self._pending, default=0.0) >= self._threshold
        self._pending = []
        return [Utterance(begin, end, end, spoken=spoken)] if end > begin else []

    def _silence_before(self) -> int:
        """Windows to cut off when silence is followed by speech without a pause; else 0."""
        spoken = [p >= self._threshold for p in self._pending]
        first = spoken.index(True) if True in spoken else len(spoken)
        if first == len(spoken):
            return first
        pauses = any(
            not any(spoken[i : i + PAUSE_WINDOWS])
            for i in range(first, len(spoken) - PAUSE_WINDOWS + 1)
        )
        return first - PAUSE_WINDOWS if first > 2 * PAUSE_WINDOWS and not pauses else 0


def cut_after(probabilities: Sequence[float], threshold: float) -> int:
    """After how many windows to cut: in the middle of the last pause between speech.

    A pause is :data:`PAUSE_WINDOWS` windows below ``threshold`` or more. Where there is none, the
    cut falls after the least probable window of the later half.
    """
    count = len(probabilities)
    run = 0
    for index in range(count - 1, -1, -1):
        if probabilities[index] < threshold:
            run += 1
            continue
        if run >= PAUSE_WINDOWS:
            return index + 1 + (run + 1) // 2
        run = 0
    later = range(max(count // 2, 1), count)
    return min(later, key=lambda index: (probabilities[index], -index), default=count - 1) + 1


def _windows(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / WINDOW_SAMPLES)


def _ceil(position: int) -> int:
    return -(-position // WINDOW_SAMPLES)
