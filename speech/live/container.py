"""Opus in Ogg or WebM, decoded while it arrives."""

import asyncio
import contextlib
import threading

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from speech.audio import Samples
from speech.errors import AudioTooLong, SpeechError, TooManyChannels, UnsupportedAudio
from speech.live.ogg_links import OggLinks
from speech.live.pcm import StreamResampler, mono_mix
from speech.media.frames import GAP_S

MAX_SECONDS_PER_FEED = 300.0
"""What the bytes of one ``feed`` may decode to; 200 KB of Opus at its lowest rate are less."""

MAX_BYTES_WITHOUT_AUDIO = 2 * 1024 * 1024
"""What a container may hold between two packets of audio, such as tags with a picture."""

_DEMUXERS = {b"OggS": "ogg", b"\x1a\x45\xdf\xa3": "matroska"}
_MAX_CHANNELS = 2
_NO_SAMPLES: Samples = np.empty(0, np.float32)


class ContainerDecoder:
    """Opus in Ogg or WebM, as the MediaRecorder of a browser sends it, split anywhere.

    FFmpeg pulls while a socket pushes, so FFmpeg runs in a thread that starts with the first byte.
    ``feed`` returns when that thread has consumed everything and asks for more: the pipe between
    them never holds more than one batch. A hole in the timestamps (over 50 ms) becomes silence, as
    discontinuous transmission of Opus leaves them; damaged packets are skipped. A recorder may
    begin anew, also with another number of channels. Nothing is fed after ``flush``.
    """

    def __init__(self) -> None:
        self._pipe = _Pipe()
        self._thread: threading.Thread | None = None

    async def feed(self, data: bytes) -> Samples:
        """See :class:`speech.live.stream_decoder.StreamDecoder`."""
        if not data:
            return _NO_SAMPLES
        if self._thread is None:
            self._thread = threading.Thread(
                target=_decode, args=(self._pipe,), name="stream-decoder", daemon=True
            )
            self._thread.start()
        return await self._pipe.put(data)

    async def flush(self) -> Samples:
        """See the protocol."""
        return _NO_SAMPLES if self._thread is None else await self._pipe.put(b"", last=True)

    async def close(self) -> None:
        """See the protocol; the thread has ended afterwards."""
        if self._thread is not None:
            await self._pipe.close()
            self._thread.join()  # its last call on the pipe is over: this takes microseconds


class _Pipe:
    """Bytes to the decoding thread and samples back; the loop waits in futures, the thread here.

    The methods with ``async`` belong to the loop, the others to the thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data = bytearray()
        self._samples: list[Samples] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._links: OggLinks | None = None
        self._expected = 0
        self._bytes_without_audio = 0
        self._error: SpeechError | None = None
        self._ended = self._finished = False
        self.closed = False

    async def put(self, data: bytes, last: bool = False) -> Samples:
        """The samples that the thread had made when it asked for more, or ended.

        An error is raised once the samples before it were returned.
        """
        with self._changed:
            if not self._finished:
                self._data += data
                self._expected = 0
                self._ended |= last
            elif data and self._error is None:
                self._error = UnsupportedAudio("audio follows after the end of the container")
        await self._consumed()
        with self._changed:
            samples, self._samples = self._samples, []
        if samples:
            return np.concatenate(samples)
        if self._error is not None:
            raise self._error
        return _NO_SAMPLES

    async def close(self) -> None:
        """Let the thread end, whatever data it has left, and wait until it has."""
        with self._changed:
            self._ended = self.closed = True
            self._data.clear()
        await self._consumed()

    async def _consumed(self) -> None:
        """Wait until the thread needs more data than there is, or has finished."""
        with self._changed:
            if self._finished:
                return
            consumed = asyncio.get_running_loop().create_future()
            self._waiting.append(consumed)
            self._changed.notify_all()
        await consumed

    def read(self, size: int) -> bytes:
        """What is there, as soon as there is something; empty at the end. FFmpeg calls it."""
        with self._changed:
            self._wait_for_data(1)
            while (count := self._take(size)) is None:
                self._wait_for_data(len(self._data) + 1)
            data = bytes(self._data[:count])
            del self._data[:count]
            self._bytes_without_audio += len(data)
            if self._bytes_without_audio > MAX_BYTES_WITHOUT_AUDIO:
                return b""
            return data

    def _take(self, size: int) -> int | None:
        if self._links is None:
            return min(size, len(self._data))
        return self._links.take(self._data, size, last=self._ended)

    def split_links(self) -> None:
        """From now on reads end with the link of an Ogg chain, see :meth:`next_link`."""
        self._links = OggLinks()

    def next_link(self) -> bool:
        """Continue with the next link of the chain; False if there is none."""
        with self._changed:
            if self._links is None or not self._data or self._take(1) != 0:
                return False
            self._links.begin()
            return True

    def magic(self) -> bytes:
        """The first four bytes, which stay where they are."""
        with self._changed:
            self._wait_for_data(4)
            return bytes(self._data[:4])

    def expect(self, samples: int, sample_rate: int) -> None:
        """Count what is about to be emitted, before memory is taken for it.

        Raises AudioTooLong.
        """
        with self._changed:
            self._expected += samples
            if self._expected > MAX_SECONDS_PER_FEED * sample_rate:
                raise AudioTooLong(
                    f"one batch of bytes holds more than {MAX_SECONDS_PER_FEED:g} seconds of audio"
                )

    def emit(self, samples: Samples) -> None:
        with self._changed:
            self._bytes_without_audio = 0
            self._samples.append(samples)

    def finish(self, error: SpeechError | None) -> None:
        """The thread has ended."""
        with self._changed:
            if self.closed:
                error = None
            elif self._bytes_without_audio > MAX_BYTES_WITHOUT_AUDIO:
                error = UnsupportedAudio(
                    f"{MAX_BYTES_WITHOUT_AUDIO} bytes of the container hold no audio"
                )
            elif error is None and self._data:
                error = UnsupportedAudio("audio follows after the end of the container")
            self._error, self._finished = error, True
            self._wake_loop()

    def _wait_for_data(self, size: int) -> None:
        while len(self._data) < size and not self._ended:
            self._wake_loop()
            self._changed.wait()

    def _wake_loop(self) -> None:
        for consumed in self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                consumed.get_loop().call_soon_threadsafe(_resolve, consumed)
        self._waiting.clear()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _decode(pipe: _Pipe) -> None:
    """What the thread runs: one container, or a chain, from its first byte to its last."""
    error: SpeechError | None = None
    try:
        demuxer = _DEMUXERS.get(pipe.magic())
        if demuxer is None:
            raise UnsupportedAudio("the stream is neither Ogg nor WebM")
        if demuxer == "ogg":
            pipe.split_links()
        _decode_file(pipe, demuxer)
        while pipe.next_link():
            _decode_file(pipe, demuxer)
    except SpeechError as refusal:
        error = refusal
    except (FFmpegError, ValueError):
        error = UnsupportedAudio("the stream is no Ogg or WebM that can be read")
    except Exception as unexpected:
        error = SpeechError(f"decoding failed: {unexpected!r}")
    finally:
        pipe.finish(error)


def _decode_file(pipe: _Pipe, demuxer: str) -> None:
    with av.open(
        pipe,
        "r",
        format=demuxer,
        container_options={"protocol_whitelist": "none"},
        metadata_errors="replace",
    ) as container:
        _decode_track(pipe, container, _opus_track(container))


def _opus_track(container: InputContainer) -> AudioStream:
    for track in container.streams.audio:
        if track.codec_context is not None and track.codec_context.name == "opus":
            track.codec_context.thread_count = 1
            return track
    raise UnsupportedAudio("the container has no track of Opus")


def _decode_track(pipe: _Pipe, container: InputContainer, track: AudioStream) -> None:
    time_base = float(track.time_base or 0)
    resampler: StreamResampler | None = None
    first_pts: int | None = None
    emitted = 0
    for packet in container.demux(track):
        if pipe.closed:
            return
        try:
            frames = track.codec_context.decode(packet)
        except FFmpegError:  # a damaged packet
            continue
        for frame in frames:
            rate = frame.sample_rate
            if resampler is None:
                resampler = StreamResampler(rate)
            if frame.pts is not None:
                first_pts = frame.pts if first_pts is None else first_pts
                hole = round((frame.pts - first_pts) * time_base * rate) - emitted
                if hole > GAP_S * rate:
                    pipe.expect(hole, rate)
                    pipe.emit(resampler.push(np.zeros(hole, np.float32)))
                    emitted += hole
            pipe.expect(frame.samples, rate)
            pipe.emit(resampler.push(mono_mix(_planes(frame))))
            emitted += frame.samples
    if resampler is not None:
        pipe.emit(resampler.finish())


def _planes(frame: AudioFrame) -> Samples:
    if frame.layout.nb_channels > _MAX_CHANNELS:
        raise TooManyChannels(
            f"the stream has {frame.layout.nb_channels} channels, at most {_MAX_CHANNELS} are taken"
        )
    return np.asarray(frame.to_ndarray(), np.float32)  # FFmpeg's own decoder: planar floats
