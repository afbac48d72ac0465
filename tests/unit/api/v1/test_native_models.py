"""The native stream in every encoding, and with the demo models."""

import numpy as np
import pytest
import soxr

from speech.audio import SAMPLE_RATE
from tests.unit.api.native_client import END, errors, finals, native, paced, stream, texts
from tests.unit.heldout import clips
from tests.unit.live_audio import WHISPERED, exact, pcm, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES
from tests.unit.sound_files import encode

# Encodings


async def test_floats_and_more_channels_are_taken_as_well(quick):
    samples = np.concatenate((speak(1, 2), silence(1), speak(3)))
    expected = finals(await stream(quick, exact(samples)))
    floats = samples.astype("<f4").tobytes()
    stereo = np.repeat(samples, 2).astype("<f4").tobytes()
    for audio, start in (
        (floats, {"encoding": "pcm_f32le"}),
        (stereo, {"encoding": "pcm_f32le", "channels": 2}),
    ):
        received = finals(await stream(quick, audio, frame=1001, **start))
        assert [final | {"seq": 0, "lag_s": 0} for final in received] == [
            final | {"seq": 0, "lag_s": 0} for final in expected
        ]


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
async def test_other_rates_are_recognised(demo, spoken, speech, rate):
    audio = pcm(soxr.resample(speech, SAMPLE_RATE, rate))
    received = finals(await stream(demo, audio, frame=4999, sample_rate=rate))
    assert errors(spoken, [final["text"] for final in received]) < 0.3
    assert received[-1]["end"] == pytest.approx(len(speech) / SAMPLE_RATE, abs=2.0)


@pytest.mark.parametrize("container", ["webm", "ogg"])
async def test_opus_as_a_browser_sends_it_is_recognised(demo, spoken, speech, container):
    wide = soxr.resample(speech, SAMPLE_RATE, 48_000)
    file = encode(container, "libopus", wide, 48_000, bit_rate=48_000)
    events = await stream(demo, file, frame=1000, encoding="opus", partials=False)
    assert errors(spoken, texts(events)) < 0.3


async def test_what_is_no_opus_is_refused(quick):
    async with native(quick, encoding="opus") as (client, _):
        await client.send(b"RIFF" + bytes(1000))
        error, _ = await client.rest()
    assert (error["code"], client.closed[0]) == ("unsupported_audio", 1008)


# The demo models


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
async def test_a_stream_sent_at_once_is_cut_as_at_the_pace_of_speech(demo, spoken, speech, model):
    def essence(events):
        return [(f["text"], f["start"], f["end"], f["words"]) for f in finals(events)]

    audio = pcm(speech)
    at_once = await stream(demo, audio, frame=len(audio), model=model)
    async with native(demo, model=model, partials=False) as (client, _):
        events = await paced(client, audio)
        await client.send(END)
        events += await client.rest()
    assert essence(events) == essence(at_once)
    assert len(finals(at_once)) >= len(spoken)
    assert errors(spoken, texts(at_once)) < 0.3


async def test_no_word_of_a_final_ends_behind_it_however_the_audio_came(quick):
    speech, pause = exact(speak(1, gap_s=0), speak(WHISPERED, word_s=0.5)), exact(silence(1))
    (at_once,) = finals(await stream(quick, speech + pause, frame=len(speech + pause)))
    async with native(quick) as (client, _):
        await client.send(speech)
        await client.until(type="partial")
        await client.send(pause, END)
        (spoken,) = finals(await client.rest())
    assert at_once["words"][-1]["end"] <= at_once["end"]
    assert spoken["words"] == at_once["words"]


async def test_the_profile_of_realtime_stt_works_with_its_detectors(demo, spoken):
    audio = np.concatenate((silence(2), spoken[0].samples, silence(2), spoken[1].samples))
    events = await stream(demo, pcm(audio), endpointing={"profile": "realtime_stt"})
    starts = [event["at"] for event in events if event["type"] == "speech_start"]
    received = finals(events)
    assert len(received) == 2
    assert received[0]["start"] == pytest.approx(starts[0] - 1.0, abs=0.04)
    assert errors(spoken[:2], texts(events)) < 0.4


async def test_emotion_and_speaker_of_each_final_when_asked(demo, demo_audio):
    voices = [clip for clip in clips(demo_audio, count=16) if clip.language == "en"]
    one, other = voices[0], voices[3]
    audio = [part for clip in (one, other) * 3 for part in (clip.samples, silence(1))]
    received = finals(await stream(demo, pcm(*audio), emotion=True, speaker=True))
    assert len(received) == 6
    labels = [final["speaker"] for final in received]
    assert labels == ["SPEAKER_00", "SPEAKER_01"] * 3
    for final in received:
        assert set(final["emotion"]) == {"angry", "sad", "neutral", "positive"}
        assert sum(final["emotion"].values()) == pytest.approx(1, abs=1e-3)
    plain_told = finals(await stream(demo, pcm(*audio[:2])))
    assert not {"emotion", "speaker", "voice"} & set(plain_told[0])


async def test_a_replica_that_takes_over_keeps_speakers_and_numbers(demo, demo_audio):
    voices = [clip for clip in clips(demo_audio, count=16) if clip.language == "en"]
    one, other = (pcm(voices[n].samples, silence(1)) for n in (0, 3))
    before = finals(await stream(demo, one + other, speaker=True))
    resume = {
        "session": "of-another-replica",
        "seq": before[-1]["seq"],
        "from_s": before[-1]["end"],
        "utterances": len(before),
        "voices": {final["speaker"]: final["voice"] for final in before},
    }
    async with native(demo, speaker=True, resume=resume) as (client, ready):
        assert not ready["resumed"]
        await client.send(other + one, END)
        after = finals(await client.rest())
    assert [(f["utterance"], f["speaker"]) for f in before + after] == [
        (0, "SPEAKER_00"),
        (1, "SPEAKER_01"),
        (2, "SPEAKER_01"),
        (3, "SPEAKER_00"),
    ]


async def test_noise_and_silence_do_no_harm(demo):
    noise = np.random.default_rng(1).normal(0, 0.01, 10 * SAMPLE_RATE).clip(-1, 1)
    await stream(demo, pcm(noise, silence(5)))
    assert texts(await stream(demo, pcm(silence(20)))) == []
