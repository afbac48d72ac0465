"""A client of the two Vosk sockets."""

from speech.audio import SAMPLE_RATE
from tests.unit.heldout import wer
from tests.unit.live_audio import frames

EOF = '{"eof" : 1}'
SECOND = 2 * SAMPLE_RATE
"""Bytes of PCM16 at the rate of the models."""
LONGEST_S = 15.0


async def converse(service, audio, *, path="/ws", config=None, frame=8000):
    """All answers to a stream, from the configuration to the close."""
    async with service.connect(path) as client:
        if config is not None:
            await client.send({"config": config})
        await client.send(*frames(audio, frame), EOF)
        answers = await client.rest()
    assert client.closed[0] == 1000
    return answers


def results(answers):
    """What was recognised, of answers that are all as server B shapes them."""
    for answer in answers:
        assert list(answer) == ["silence", "data", "error", "last_message"]
        assert answer["silence"] is (answer["data"] == "" and answer["error"] is None)
    assert [a["last_message"] for a in answers] == [False] * (len(answers) - 1) + [True]
    return [a["data"] for a in answers if a["data"]]


def words(answers):
    found = [word for result in results(answers) for word in result["result"]]
    assert all(list(word) == ["conf", "start", "end", "word"] for word in found)
    return found


def text(answers):
    return " ".join(result["text"] for result in results(answers))


def times(found):
    return [edge for word in found for edge in (word["start"], word["end"])]


def errors(expected, recognised):
    return wer(" ".join(expected), recognised)


SILENT = {"silence": True, "data": "", "error": None, "last_message": False}
LAST = SILENT | {"last_message": True}
