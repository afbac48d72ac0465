"""The first frame of the native stream: what a client may ask for, and how it resumes a stream."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from api.fields import Language
from speech.live.endpointing import EndpointOptions
from speech.live.pcm import PcmFormat
from speech.live.session_options import ResumeState
from speech.live.speakers import MAX_SPEAKERS
from speech.ports import MAX_HOTWORDS

REALTIME_STT = EndpointOptions(
    threshold=0.95,
    end_threshold=0.95,
    silence_s=1.5,
    min_utterance_s=2.0,
    pre_roll_s=1.0,
    webrtc_mode=3,
)
"""The defaults of RealtimeSTT servers."""


MAX_COUNT = 2**53
"""No number that is counted up to gets larger: JSON clients keep integers up to here."""


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Endpointing(_Frame):
    """When an utterance begins and ends; an absent field has the value of the profile.

    The last four are RealtimeSTT's names: ``silero_sensitivity`` is one minus the threshold.
    """

    profile: Literal["default", "realtime_stt"] = "default"
    threshold: float | None = None
    end_threshold: float | None = None
    min_speech_s: float | None = None
    silence_s: float | None = None
    min_utterance_s: float | None = None
    max_utterance_s: float | None = None
    pre_roll_s: float | None = None
    tail_s: float | None = None
    webrtc_mode: int | None = None
    silero_sensitivity: Annotated[float, Field(gt=0, lt=1)] | None = None
    webrtc_sensitivity: int | None = None
    post_speech_silence_duration: float | None = None
    min_length_of_recording: float | None = None

    def options(self) -> EndpointOptions:
        """These settings for the session. Raises InvalidRequest."""
        base = REALTIME_STT if self.profile == "realtime_stt" else EndpointOptions()
        given = self.model_dump(exclude={"profile"}, exclude_none=True)
        for name, ours in (
            ("webrtc_sensitivity", "webrtc_mode"),
            ("post_speech_silence_duration", "silence_s"),
            ("min_length_of_recording", "min_utterance_s"),
        ):
            if name in given:
                given[ours] = given.pop(name)
        if "silero_sensitivity" in given:
            given["threshold"] = given["end_threshold"] = 1 - given.pop("silero_sensitivity")
        if "threshold" in given and "end_threshold" not in given:
            given["end_threshold"] = min(base.end_threshold, given["threshold"])
        return replace(base, **given)


class Resume(_Frame):
    """How far a client had come when its socket dropped."""

    session: str = Field(pattern=r"^[0-9a-zA-Z_-]{1,64}$")
    seq: int = Field(ge=0, le=MAX_COUNT, description="The last event received.")
    from_s: float = Field(ge=0, le=10**6, description="End of the last final received, seconds.")
    utterances: int = Field(0, ge=0, le=MAX_COUNT, description="How many finals were received.")
    voices: Annotated[dict[str, Base64Bytes], Field(max_length=MAX_SPEAKERS)] = {}

    def state(self) -> ResumeState:
        """This state for the session."""
        return ResumeState(self.from_s, self.seq, self.utterances, self.voices)


class Start(_Frame):
    """The frame ``{"type": "start", …}``."""

    type: Literal["start"]
    model: str | None = Field(None, description="Makes the finals; a streaming model by default.")
    partial_model: str | None = Field(None, description="A streaming model for the partials.")
    partials: bool = True
    language: Language = None
    encoding: str = "pcm_s16le"
    sample_rate: int = Field(16_000, ge=8000, le=48_000)
    channels: int = Field(1, ge=1, le=8)
    endpointing: Endpointing = Endpointing()
    emotion: bool = False
    speaker: bool = False
    hotwords: str | None = Field(None, max_length=MAX_HOTWORDS)
    initial_prompt: str | None = Field(None, max_length=10_000)
    resume: Resume | None = None

    @property
    def pcm(self) -> PcmFormat | None:
        """The format of plain samples; None where the audio comes in a container."""
        sample_bytes = {"pcm_s16le": 2, "pcm_f32le": 4}.get(self.encoding)
        if sample_bytes is None:
            return None
        return PcmFormat(self.sample_rate, sample_bytes, self.channels)
