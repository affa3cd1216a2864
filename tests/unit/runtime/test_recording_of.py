"""A run saved as a recording brings the same run again, without a provider."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from inprocess import Functions, ListedModel, call, driver_of, ok, reply, started

from lockstep.journal.sqlite import SQLiteJournal
from lockstep.model.port import ToolMessage, UserMessage
from lockstep.model.recorded import RecordedModel, read_recording, write_recording
from lockstep.runtime.answers import cancel
from lockstep.runtime.recording import recording_of
from lockstep.values import Attachment

SAID = (
    reply(call("look", {"to": "SFO"}), call("teleport"), text="Let me look."),
    reply(call("book", {"flight": "BA1"}), cost_usd=None),
    reply(text="Booked."),
)


def test_a_recorded_run_can_be_run_again_by_its_recording(tmp_path: Path) -> None:
    async def work() -> None:
        journal = SQLiteJournal.open(tmp_path / "store")
        driving = driver_of(journal, ListedModel(*SAID), Functions(look=lambda _: ok("BA1")))
        first = await driving.advance(await driving.start(started()))
        recording = recording_of(await journal.read(first.run))
        assert [turn.reply for turn in recording.turns] == list(SAID)
        assert recording.turns[0].expects == (UserMessage(text="Book me a flight."),)
        look, teleport = recording.turns[1].expects
        assert isinstance(look, ToolMessage)
        assert isinstance(teleport, ToolMessage)
        assert (look.text, teleport.is_error, recording.unanswered) == ("BA1", True, ())

        model = RecordedModel(recording=recording)
        again = driver_of(journal, model, Functions(look=lambda _: ok("BA1")))
        second = await again.advance(await again.start(started(session="s2")))
        assert (second.output, second.totals) == (first.output, first.totals)
        await journal.close()

    asyncio.run(work())


def test_a_run_that_was_cut_short_records_what_nobody_answered(tmp_path: Path) -> None:
    async def work() -> None:
        journal = SQLiteJournal.open(tmp_path / "store")
        driving = driver_of(journal, ListedModel(*SAID), Functions())
        run = await driving.start(started())
        await cancel(journal, run, by="ada")
        recording = recording_of(await journal.read(run))
        assert (recording.turns, recording.unanswered) == ((), (UserMessage(text="Book me a flight."),))
        await journal.close()

    asyncio.run(work())


def test_images_of_results_are_kept_in_the_file_and_compared(tmp_path: Path) -> None:
    plot = Attachment(name="plot.png", mime_type="image/png", data=bytes(range(256)), shown=True)
    table = Attachment(name="t.csv", mime_type="text/csv", data=b"1,2")
    outcome = replace(ok("[image: image/png, 256 bytes]"), attachments=(table, plot))

    async def work() -> None:
        journal = SQLiteJournal.open(tmp_path / "store")
        model = ListedModel(reply(call("look")), reply(text="Red."))
        driving = driver_of(journal, model, Functions(look=lambda _: outcome))
        first = await driving.advance(await driving.start(started()))
        assert first.all_calls[0].attachments == (table, plot)
        write_recording(tmp_path / "said.jsonl", recording_of(await journal.read(first.run)))
        recording = read_recording(tmp_path / "said.jsonl")
        (shown,) = recording.turns[1].expects
        assert isinstance(shown, ToolMessage)
        assert shown.images == (plot,)

        for session, data, stop in (("s2", plot.data, "completed"), ("s3", b"other", "recording_mismatch")):
            seen = replace(outcome, attachments=(replace(plot, data=data),))
            again = driver_of(journal, RecordedModel(recording=recording), Functions(look=lambda _, seen=seen: seen))
            state = await again.advance(await again.start(started(session=session)))
            assert state.stop_reason == stop
        assert "message 1, the result of look, has other images" in state.message
        await journal.close()

    asyncio.run(work())


def test_a_result_without_images_is_recorded_as_before_there_were_any(tmp_path: Path) -> None:
    async def work() -> None:
        journal = SQLiteJournal.open(tmp_path / "store")
        driving = driver_of(journal, ListedModel(reply(call("look")), reply(text="Yes.")), Functions())
        first = await driving.advance(await driving.start(started()))
        write_recording(tmp_path / "said.jsonl", recording_of(await journal.read(first.run)))
        assert "images" not in (tmp_path / "said.jsonl").read_text()
        await journal.close()

    asyncio.run(work())
