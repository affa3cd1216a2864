"""The tables and the checks, from measurements to words. A missing figure never counts as a met target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from contenders import OURS, PEERS, Failure, Sample

Book = dict[tuple[str, str], list[Sample | Failure]]
"""Outcomes in the order measured, by contender name and case title."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One workload; `runs` is None for one run alone, else the number of runs at once."""

    title: str
    steps: int
    runs: int | None
    repetitions: int
    peer_repetitions: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """One target; `figure` is None when it could not be measured, and `detail` says what it is or why it is missing."""

    name: str
    limit: float
    figure: float | None
    detail: str

    @property
    def met(self) -> bool:
        """Whether there is a figure and it keeps the limit."""
        if self.figure is None:
            return False
        return self.figure >= self.limit if self.name.endswith("_min") else self.figure <= self.limit


def samples_of(book: Book, name: str, case: Case) -> list[Sample]:
    """Return the samples of one cell, none when anything in it failed."""
    samples = [outcome for outcome in book[name, case.title] if isinstance(outcome, Sample)]
    return samples if len(samples) == len(book[name, case.title]) else []


def print_table(case: Case, book: Book) -> None:
    """Print one case: least and median of the repetitions; ratios compare least to least with ours."""
    print(f"\n{case.title} (least / median; ratio to ours)")
    columns = ["CPU ms/step", "wall ms/step", "CPU ratio", "RSS MiB", "storage KiB"]
    columns.append("steps/s" if case.runs else "last 20:first 20")
    print(f"  {'':44}" + "".join(f"{column:>17}" for column in columns))
    ours = samples_of(book, OURS.name, case)
    for contender in (OURS, *PEERS):
        failures = [outcome for outcome in book[contender.name, case.title] if isinstance(outcome, Failure)]
        cells = f"  FAILED: {failures[0].reason}" if failures else row(samples_of(book, contender.name, case), ours)
        print(f"  {contender.name:44}{cells}")


def row(samples: list[Sample], ours: list[Sample]) -> str:
    """Return the cells of one contender."""
    last = growth(samples)
    rates = [sample.steps_per_s for sample in samples if sample.steps_per_s is not None]
    cells = [
        least_and_median([sample.cpu_ms_per_step for sample in samples]),
        least_and_median([sample.wall_ms_per_step for sample in samples]),
        f"{least_cpu(samples) / least_cpu(ours):.1f}x" if ours else "-",
        f"{median(sample.peak_rss_mb for sample in samples):.0f}",
        f"{max(sample.storage_kib for sample in samples):,.0f}",
        f"{max(rates):,.0f} / {median(rates):,.0f}" if rates else "-" if last is None else f"{last:.2f}",
    ]
    return "".join(f"{cell:>17}" for cell in cells)


def least_and_median(values: list[float]) -> str:
    return f"{min(values):.2f} / {median(values):.2f}"


def least_cpu(samples: list[Sample]) -> float:
    return min(sample.cpu_ms_per_step for sample in samples)


def growth(samples: list[Sample]) -> float | None:
    """Return CPU per step in the last 20 steps over that in the first 20, least to least."""
    first = [sample.first_20_ms for sample in samples if sample.first_20_ms]
    last = [sample.last_20_ms for sample in samples if sample.last_20_ms]
    return min(last) / min(first) if first and last else None


def check_targets(
    targets: dict[str, float], cases: tuple[Case, ...], book: Book, help_ms: list[float] | Failure
) -> list[Check]:
    """Hold our figures against the targets: times by their least, memory by its median, storage by its greatest."""
    alone = [case for case in cases if not case.runs]
    long = max(alone, key=lambda case: case.steps)
    together = next(case for case in cases if case.runs)
    figures: dict[str, Callable[[], tuple[float | None, str]]] = {
        "cpu_ms_per_step_max": lambda: worst_cpu(book, alone),
        "ratio_to_best_peer_max": lambda: worst_ratio(book, alone),
        "step400_vs_step20_max": lambda: (growth(samples_of(book, OURS.name, long)), "CPU of last 20 over first 20"),
        "storage_kib_400_max": lambda: greatest(book, [long], lambda sample: sample.storage_kib),
        "help_ms_max": lambda: (None, help_ms.reason) if isinstance(help_ms, Failure) else (min(help_ms), "wall"),
        "rss_mb_max": lambda: worst_memory(book, alone),
        "concurrent_steps_per_s_min": lambda: greatest(book, [together], lambda sample: sample.steps_per_s or 0.0),
    }
    checks = []
    for name, limit in targets.items():
        figure, detail = figures[name]()
        checks.append(Check(name=name, limit=limit, figure=figure, detail=detail))
    return checks


def worst_cpu(book: Book, cases: list[Case]) -> tuple[float | None, str]:
    """Return our CPU per step in the case where it is greatest."""
    found = [(least_cpu(ours), case.title) for case in cases if (ours := samples_of(book, OURS.name, case))]
    return max(found) if len(found) == len(cases) else (None, "ours failed")


def worst_ratio(book: Book, cases: list[Case]) -> tuple[float | None, str]:
    """Return our CPU per step over the best peer's in the case where that is greatest; every peer has to have run."""
    found = []
    for case in cases:
        ours, peers = samples_of(book, OURS.name, case), {}
        for peer in PEERS:
            samples = samples_of(book, peer.name, case)
            if not samples:
                return None, f"{peer.name} failed, so the best peer is unknown"
            peers[peer.name] = least_cpu(samples)
        if not ours:
            return None, "ours failed"
        best = min(peers, key=lambda name: peers[name])
        found.append((least_cpu(ours) / peers[best], f"{case.title}, best peer {best} at {peers[best]:.2f} ms"))
    return max(found)


def worst_memory(book: Book, cases: list[Case]) -> tuple[float | None, str]:
    """Return our peak memory in the case where its median is greatest; the median forgets a first run that compiled."""
    found = [
        (median(sample.peak_rss_mb for sample in ours), case.title)
        for case in cases
        if (ours := samples_of(book, OURS.name, case))
    ]
    return max(found) if len(found) == len(cases) else (None, "ours failed")


def greatest(book: Book, cases: list[Case], read: Callable[[Sample], float]) -> tuple[float | None, str]:
    """Return the greatest of our figures over all repetitions of `cases`."""
    found = [(read(sample), case.title) for case in cases for sample in samples_of(book, OURS.name, case)]
    return max(found) if found else (None, "ours failed")


def print_checks(checks: list[Check], help_ms: list[float] | Failure) -> None:
    """Print the time of `lockstep --help`, then one line per target."""
    shown = f"FAILED: {help_ms.reason}" if isinstance(help_ms, Failure) else f"{least_and_median(help_ms)} ms"
    print(f"\nlockstep --help (least / median)  {shown}\n\ntargets")
    for check in checks:
        verdict = "met" if check.met else "NOT met"
        figure = shown_figure(check.figure)
        print(f"  {verdict:8} {check.name:28} {figure:>10}  (limit {shown_figure(check.limit)}; {check.detail})")


def shown_figure(figure: float | None) -> str:
    if figure is None:
        return "no figure"
    return f"{figure:.3g}" if figure < 100 else f"{figure:,.0f}"
