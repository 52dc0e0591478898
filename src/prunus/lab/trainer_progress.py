"""Shows training progress: a bar on a terminal, else a line per tenth of the way. Writes only to the stream given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prunus.lab.trainer import Progress as Callback
from prunus.lab.trainer import State


@runtime_checkable
class Stream(Protocol):
    """Where text is written: `sys.stderr`, an open file, an `io.StringIO`."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


def clock(seconds: float) -> str:
    """`0:07`, `12:40` or `1:02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def line(title: str, state: State) -> str:
    """One line of text about a state."""
    return (
        f"{title}: {state.step / state.steps:4.0%}, epoch {state.epoch}/{state.epochs}, loss {state.loss:.3f}, "
        f"accuracy {state.accuracy:.1%}, {clock(state.seconds_left)} left"
    )


@contextmanager
def shown(title: str, stream: Stream) -> Iterator[Callback]:
    """A callback for `train(progress=...)`, whose display lasts as long as the context.

    >>> import sys
    >>> with shown("training", sys.stderr) as progress:      # doctest: +SKIP
    ...     train(model, loader, epochs=2, progress=progress)
    """
    if stream.isatty():
        with _bar(title, stream) as bar:
            yield bar
    else:
        yield Lines(title, stream)


class Lines:
    """Writes a line each time another tenth of the steps is done."""

    def __init__(self, title: str, stream: Stream) -> None:
        self.title, self.stream = title, stream
        self._tenth: int | None = None

    def __call__(self, state: State) -> None:
        tenth = 10 * state.step // state.steps
        # A resumed run starts in the middle: its first step only says where that is.
        if self._tenth is None:
            self._tenth = 10 * (state.step - 1) // state.steps
        if tenth > self._tenth:
            self._tenth = tenth
            self.stream.write(line(self.title, state) + "\n")
            self.stream.flush()


@contextmanager
def _bar(title: str, stream: Stream) -> Iterator[Callback]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]} left"),
    )
    with Progress(*columns, console=Console(file=cast(IO[str], stream)), transient=False) as display:
        task = display.add_task(title, total=None, loss=float("nan"), accuracy=0.0, left="?")

        def update(state: State) -> None:
            display.update(
                task,
                total=state.steps,
                completed=state.step,
                loss=state.loss,
                accuracy=state.accuracy,
                left=clock(state.seconds_left),
            )

        yield update
