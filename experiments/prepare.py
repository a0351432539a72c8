"""Pack a data set into an image bank, the one form that training reads.

    python experiments/prepare.py omniglot ~/omniglot data/omniglot
    python experiments/prepare.py cifar_fs cifar-100-python.tar.gz data/cifar_fs
    python experiments/prepare.py miniimagenet ~/mini_imagenet data/miniimagenet
    python experiments/prepare.py folders ~/photos data/photos --split 0.6,0.2,0.2

What is broken or incomplete is refused on stderr with exit code 2. The bank appears at
OUTPUT when it is complete; an interrupted run leaves none.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from experiments import launch
from l2f_jax.data.bank import SPLITS, ImageBank, load_bank
from l2f_jax.data.pack import pack_bank
from l2f_jax.data.sources import open_source, source_names
from l2f_jax.data.writer import check_target

REFUSED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    start = time.perf_counter()
    try:
        args = _parser().parse_args(argv)
        check_target(args.output, args.overwrite)
        source = open_source(args.source, args.input, split=args.split, seed=args.seed)
        for note in source.notes:
            print(note)
        with _progress(source.total) as show, _interruptible() as check:

            def advance(name: str) -> None:
                show(name)
                check()

            pack_bank(
                source,
                args.output,
                size=args.size,
                min_images=args.min_images,
                allow_partial=args.allow_partial,
                overwrite=args.overwrite,
                advance=advance,
            )
        seconds = time.perf_counter() - start
        print(f"{args.output}: {_summary(load_bank(args.output))}, {seconds:.1f} s")
    except (ValueError, OSError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("prepare.py: interrupted, no bank was written", file=sys.stderr)
        return INTERRUPTED
    return 0


def _summary(bank: ImageBank) -> str:
    count, height, width, channels = bank.images.shape
    splits = ", ".join(f"{bank.splits.count(split)} {split}" for split in SPLITS)
    mean, std = (
        "/".join(f"{value:.4f}" for value in bank.provenance[name])
        for name in ("mean", "std")
    )
    return (
        f"{len(bank.classes)} classes ({splits}), {count} images "
        f"{height} x {width} x {channels}, mean {mean}, std {std}"
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function to call after each class: a bar on a terminal, else lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer(total)
        return
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("packing", total=total)

        def advance(name: str) -> None:
            bar.update(task, advance=1, description=name)

        yield advance


def _line_printer(total: int) -> Callable[[str], None]:
    """Return a function that prints a line at each tenth of the classes."""
    done = 0

    def advance(name: str) -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{done} of {total} classes, {name}", flush=True)

    return advance


def _parser() -> launch.Parser:
    parser = launch.Parser(__doc__)
    parser.add_argument("source", help=f"one of {', '.join(source_names())}")
    parser.add_argument("input", type=Path, help="folder or archive to read")
    parser.add_argument("output", type=Path, help="folder of the bank to make")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--split", help="class split, where the source has several")
    parser.add_argument("--seed", type=int, default=0, help="of a random split")
    parser.add_argument("--min-images", type=int, default=2, help="of every class")
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="accept other counts than published",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the bank at OUTPUT"
    )
    return parser


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt at SIGINT, and at SIGTERM to clean up as well.

    Yields a function that raises it once more: Python drops what is raised while an
    object is finalised.
    """
    received, numbers = [], (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
