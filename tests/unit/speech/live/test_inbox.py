"""The inbox of a stream: in order, in blocks, within its own bound and that of all streams."""

import asyncio

import pytest

from speech.audio import SAMPLE_RATE
from speech.errors import TooFarAhead
from speech.live.inbox import BLOCK_S, Inbox
from speech.live.pending_total import PendingTotal

MB = 1024**2
STREAMS = 10
FRAME = bytes(3200)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def total() -> PendingTotal:
    return PendingTotal(8 * MB, max_streams=STREAMS)


def inbox_of(total: PendingTotal, max_bytes: int = 100 * MB) -> Inbox:
    return Inbox(max_bytes, total, Clock())


def filled(inbox: Inbox, frame: bytes = FRAME) -> int:
    """Put in frames until no more is taken; how many there are."""
    for count in range(10**6):
        try:
            inbox.put(frame)
        except TooFarAhead:
            return count
    raise AssertionError("this inbox has no bound")


async def has_room(inbox: Inbox) -> bool:
    """Whether ``wait_for_room`` returns at once."""
    waiting = asyncio.create_task(inbox.wait_for_room())
    await asyncio.sleep(0)
    if waiting.done():
        return True
    waiting.cancel()
    return False


async def test_a_stream_with_little_pending_has_room_while_four_others_fill_the_total(
    total: PendingTotal,
) -> None:
    bulk = [inbox_of(total) for _ in range(4)]
    for inbox in bulk:
        inbox.put(bytes(MB))
    for inbox in bulk:
        filled(inbox)
    assert not any([await has_room(inbox) for inbox in bulk])
    live = inbox_of(total)
    assert await has_room(live)
    live.put(FRAME)
    assert await has_room(live)


async def test_a_stream_within_its_share_is_not_rejected_while_all_others_fill_the_total(
    total: PendingTotal,
) -> None:
    bulk = [inbox_of(total) for _ in range(STREAMS - 1)]
    for inbox in bulk:
        filled(inbox)
    live = inbox_of(total)
    assert filled(live) == total.share // (len(FRAME) + 200)
    assert await has_room(live)


async def test_a_stream_beyond_its_share_waits_until_the_others_have_less_pending(
    total: PendingTotal,
) -> None:
    one, other = inbox_of(total), inbox_of(total)
    for inbox in (one, other):
        for _ in range(900):
            inbox.put(FRAME)
    waiting = asyncio.create_task(one.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    while not other.empty:
        await other.get()
    await waiting


@pytest.mark.parametrize("streams", [1, 3, STREAMS])
def test_all_streams_together_never_have_more_pending_than_the_total(
    total: PendingTotal, streams: int
) -> None:
    inboxes = [inbox_of(total) for _ in range(streams)]
    pending = sum(filled(inbox) for inbox in reversed(inboxes)) * (len(FRAME) + 200)
    assert 0.7 * 8 * MB < pending <= 8 * MB


def test_a_closed_inbox_gives_back_what_was_lent_to_it_and_takes_no_more(
    total: PendingTotal,
) -> None:
    inbox = inbox_of(total)
    filled(inbox)
    assert total.lent > 0
    inbox.close()
    assert (total.lent, inbox.empty, inbox.put(FRAME)) == (0, True, False)


async def test_a_stream_waits_for_room_beyond_half_of_its_own_bound(total: PendingTotal) -> None:
    inbox = inbox_of(total, max_bytes=10 * (len(FRAME) + 200))
    for _ in range(5):
        inbox.put(FRAME)
    assert await has_room(inbox)
    inbox.put(FRAME)
    assert not await has_room(inbox)


async def test_audio_comes_in_one_piece_up_to_the_next_command() -> None:
    clock = Clock()
    inbox = Inbox(MB, PendingTotal(MB, 1), clock)
    for item in (b"ab", b"cd", "commit", b"ef"):
        clock.now += 1.0
        inbox.put(item)  # type: ignore[arg-type]
    received = [await inbox.get() for _ in range(3)]
    assert [(r.item, r.arrived, r.frames) for r in received] == [
        (b"abcd", 2.0, 2),
        ("commit", 3.0, 0),
        (b"ef", 4.0, 1),
    ]


async def test_audio_that_waits_comes_in_blocks() -> None:
    inbox = inbox_of(PendingTotal(8 * MB, 1))
    seconds = 10
    for _ in range(seconds):
        inbox.put(bytes(2 * SAMPLE_RATE))
    frames = []
    while not inbox.empty:
        frames.append((await inbox.get()).frames)
    assert frames == [BLOCK_S, BLOCK_S, seconds - 2 * BLOCK_S]


@pytest.mark.parametrize("command", ["drain", "end"])
def test_a_full_inbox_takes_the_end(total: PendingTotal, command: str) -> None:
    inbox = inbox_of(total)
    filled(inbox, b"")
    assert inbox.put(command)  # type: ignore[arg-type]
