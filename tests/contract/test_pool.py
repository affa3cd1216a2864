"""The pool over real sandboxes: each serves one call, what waits costs little and reaches nothing, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from test_sandbox import BACKENDS, CALL, Here, play

from lockstep.errors import PermitError, SandboxBusy
from lockstep.gate.permit import PermitMint
from lockstep.sandbox.contract import Limits, Process, ProcessEnded, SandboxSpec
from lockstep.sandbox.interpreter import interpreter
from lockstep.sandbox.leftovers import Ledger
from lockstep.sandbox.pool import Pool
from lockstep.sandbox.warm import Lease, NotReady, Recipe, Room
from lockstep.values import now_ms

pytestmark = pytest.mark.sandbox

ROOM = Room(running=4, idle=3, starting=1, wait_s=10, queue_s=20, idle_s=30)
COUNTER = """
import os, sys
told = 0
print("ready", flush=True)
for line in sys.stdin:
    told += 1
    print(told, flush=True)
"""


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(params=BACKENDS[:1])
def here(request: pytest.FixtureRequest, proven: Path) -> Here:
    return Here(backend=request.param(proven), state_dir=proven, mint=PermitMint())


async def greet(process: Process) -> str:
    try:
        return (await process.receive()).decode()
    except ProcessEnded as ended:
        raise NotReady(f"ended: {ended.exit_code}") from ended


def recipe(here: Here, code: str = COUNTER, *, single_use: bool = True, **env: str) -> Recipe[str]:
    python, mounts = interpreter()
    spec = SandboxSpec(
        argv=(*python, "-c", code), mounts=mounts, env=env, limits=Limits(wall_s=20), single_use=single_use
    )
    return Recipe(backend=here.backend, spec=spec, warm_up=greet)


@asynccontextmanager
async def pool_of(here: Here, room: Room = ROOM) -> AsyncIterator[Pool[str]]:
    pool: Pool[str] = Pool(room)
    try:
        yield pool
    finally:
        await pool.close()
        assert here.traces() == []


async def ask(here: Here, lease: Lease[str]) -> str:
    lease.process.admit(here.permit(), CALL, {})
    await lease.process.send(b"")
    return (await lease.process.receive()).decode()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - `play` bounds it
        await asyncio.sleep(0.01)


def test_a_sandbox_started_ahead_serves_one_call_and_no_second(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here)
            pool.prepare(how)
            seen = []
            for _ in range(3):
                async with pool.lease(how) as lease:
                    assert lease.ready == "ready"
                    assert await ask(here, lease) == "1", "it was used before"
                    seen.append((lease.warm, lease.start_ms == 0, lease.process))
            assert [warm for warm, _, _ in seen] == [True, True, True]
            assert all(started_before for _, started_before, _ in seen)
            assert len({id(process) for *_, process in seen}) == 3

    play(scene)


def test_a_first_call_starts_its_own_and_a_second_finds_that_more_are_kept(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here)
            warm = []
            for _ in range(3):
                async with pool.lease(how) as lease:
                    warm.append(lease.warm)
                    assert lease.warm or lease.start_ms > 0
            assert warm == [False, False, True], "kept ahead only once it was seen to be needed again"

    play(scene)


def test_other_code_limits_or_environment_never_get_the_same_sandbox(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here)
            other = recipe(here, WHO="other")
            tighter = replace(how, spec=replace(how.spec, limits=Limits(wall_s=5)))
            assert len({how.key, other.key, tighter.key, recipe(here).key}) == 3
            pool.prepare(how)
            async with pool.lease(other) as lease, pool.lease(tighter) as second:
                assert not lease.warm
                assert not second.warm

    play(scene)


def test_one_that_died_while_it_waited_is_not_handed_out(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here, "import sys; print('ready', flush=True); sys.stdin.read(1)")
            pool.prepare(how)
            shelf = pool._shelves[how.key]
            await until(lambda: bool(shelf.ready))
            dead = shelf.ready[0].process
            await dead.send(b"x")
            await until(lambda: not dead.alive)
            async with pool.lease(how) as lease:
                assert lease.process is not dead
                assert lease.process.alive

    play(scene)


def test_one_that_cannot_get_ready_is_told_to_the_call_and_not_tried_ahead_again(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here, "raise SystemExit(3)")
            pool.prepare(how)
            with pytest.raises(NotReady, match="ended: 3"):
                await pool.lease(how).__aenter__()
            shelf = pool._shelves[how.key]
            await until(lambda: shelf.starting == 0)
            assert shelf.target == 0

    play(scene)


def test_what_nobody_comes_for_is_let_go(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here, replace(ROOM, idle_s=0.3)) as pool:
            how = recipe(here)
            pool.prepare(how)
            shelf = pool._shelves[how.key]
            await until(lambda: bool(shelf.ready))
            await until(lambda: here.traces() == [])
            assert (len(shelf.ready), shelf.target) == (0, 0)

    play(scene)


def test_what_was_asked_for_longest_ago_makes_way_when_there_is_no_room(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here, replace(ROOM, idle=1)) as pool:
            first, second = recipe(here, N="1"), recipe(here, N="2")
            pool.prepare(first)
            await until(lambda: bool(pool._shelves[first.key].ready))
            pool.prepare(second)
            assert pool._shelves[second.key].starting == 0, "what nobody has called yet drives nothing out"
            for _ in range(2):
                async with pool.lease(second) as lease:
                    assert await ask(here, lease) == "1"
            await until(lambda: bool(pool._shelves[second.key].ready))
            assert not pool._shelves[first.key].ready

    play(scene)


def test_without_room_a_call_waits_and_is_then_refused_in_words(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here, replace(ROOM, running=1, queue_s=0.2)) as pool:
            how = recipe(here)
            async with pool.lease(how):
                with pytest.raises(SandboxBusy, match="All 1 sandboxes"):
                    await pool.lease(how).__aenter__()
        async with pool_of(here, replace(ROOM, running=1)) as pool:

            async def call() -> float:
                async with pool.lease(how) as lease:
                    await ask(here, lease)
                    return lease.queue_ms

            waited = await asyncio.gather(*(call() for _ in range(3)))
            assert max(waited) > min(waited)

    play(scene)


def test_a_cancelled_call_gives_back_what_it_took(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here, replace(ROOM, running=1)) as pool:
            how = recipe(here)

            async def call(forever: bool) -> str:
                async with pool.lease(how) as lease:
                    if forever:
                        await asyncio.Event().wait()
                    return await ask(here, lease)

            for after_s in (0.0, 0.05, 0.3):
                task = asyncio.create_task(call(True))
                await asyncio.wait([task], timeout=after_s)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await call(False) == "1"

    play(scene)


def test_a_sandbox_of_a_run_keeps_its_state_for_that_run_alone(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here, single_use=False)

            async def call(run: str) -> str:
                async with pool.lease_of_run(run, how) as lease:
                    answer = await ask(here, lease)
                    lease.spoiled = False
                    return answer

            assert [await call("r1"), await call("r1"), await call("r2"), await call("r1")] == ["1", "2", "1", "3"]
            assert sorted(await asyncio.gather(call("r2"), call("r2"))) == ["2", "3"]
            await pool.end("r1")
            assert await call("r1") == "1"

    play(scene)


def test_a_sandbox_of_a_run_is_given_up_when_a_call_was_not_carried_to_its_end(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here, single_use=False)

            async def cut_short(pool: Pool[str], how: Recipe[str]) -> None:
                async with pool.lease_of_run("r1", how) as lease:
                    spent = here.permit()
                    spent.redeem(CALL, now_ms())
                    assert await ask(here, lease) == "1"
                    lease.process.admit(spent, CALL, {})

            with pytest.raises(PermitError):
                await cut_short(pool, how)
            async with pool.lease_of_run("r1", how) as lease:
                assert await ask(here, lease) == "1"

    play(scene)


def test_many_calls_at_once_each_get_their_own_and_leave_nothing(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here, replace(ROOM, running=8)) as pool:
            how = recipe(here)

            async def call() -> str:
                async with pool.lease(how) as lease:
                    return await ask(here, lease)

            assert await asyncio.gather(*(call() for _ in range(30))) == ["1"] * 30

    play(scene)


def test_what_a_pool_leaves_when_its_process_is_killed_is_swept(here: Here, tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_pool import BACKENDS, ROOM, Here, Pool, PermitMint, ask, recipe
async def main():
    state_dir = Path({str(tmp_path)!r})
    here = Here(BACKENDS[0].values[0](state_dir), state_dir, PermitMint())
    pool = Pool(replace(ROOM, running=50))
    how = recipe(here)
    async def call():
        async with pool.lease(how) as lease:
            await ask(here, lease)
            print("up", flush=True)
            await asyncio.Event().wait()
    await asyncio.gather(*(call() for _ in range(12)))
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    host = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    try:
        assert host.stdout is not None
        for _ in range(4):
            assert host.stdout.readline() == b"up\n"
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait(60)
    left = Here(backend=type(here.backend)(tmp_path), state_dir=tmp_path, mint=PermitMint())  # type: ignore[call-arg]

    async def scene() -> None:
        assert left.traces()
        await Ledger(tmp_path).sweep()
        assert left.traces() == []

    play(scene)


def test_what_is_kept_for_a_session_makes_way_for_another_and_what_is_kept_for_a_run_does_not(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here, replace(ROOM, running=2, queue_s=1.5)) as pool:
            how = recipe(here, single_use=False)

            async def told(session: str, gives_way: bool = True) -> str:
                async with pool.lease_of_run(session, how, gives_way=gives_way) as lease:
                    lease.spoiled = False
                    return await ask(here, lease)

            assert [await told("a"), await told("b"), await told("a")] == ["1", "1", "2"]
            assert await told("c") == "1"  # in place of b, which called before a did
            assert await told("a") == "3"
            assert await told("r1", gives_way=False) == "1"  # in place of c
            async with pool.lease_of_run("a", how, gives_way=True) as lease:  # under way: it cannot make way
                with pytest.raises(SandboxBusy):
                    await told("b")
                lease.spoiled = False
            assert await told("r1", gives_way=False) == "2"

    play(scene)


def test_a_run_takes_a_sandbox_that_waits_and_keeps_it(here: Here) -> None:
    async def scene() -> None:
        async with pool_of(here) as pool:
            how = recipe(here, single_use=False)
            pool.prepare(how)

            async def told(run: str) -> tuple[str, bool]:
                async with pool.lease_of_run(run, how) as lease:
                    lease.spoiled = False
                    return await ask(here, lease), lease.start_ms == 0

            assert await told("a") == ("1", True)
            assert await told("a") == ("2", True)
            assert (await told("b"))[0] == "1"  # its own

    play(scene)
