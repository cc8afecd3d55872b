"""`moesaic convert`: write a checkpoint in another layout."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moesaic.cli.output import error_console, progress_bar
from moesaic.errors import ConfigError
from moesaic.units import format_bytes

if TYPE_CHECKING:
    from moesaic.checkpoint.page_index import PageIndex


class Layout(StrEnum):
    """Layouts that can be written."""

    hf = "hf"
    moesaic = "moesaic"


def convert(
    source: str = typer.Argument(help="A model folder, a run folder, a checkpoint of a run, or a hub id."),
    target: Path = typer.Argument(help="The folder to write; must not exist."),
    to: Layout = typer.Option(
        Layout.hf, help="hf: a Hugging Face folder. moesaic: one whose experts are aligned records with checksums."
    ),
    bits: int | None = typer.Option(None, help="With --to moesaic: round experts to 8 or 4 bits; default: do not."),
    core_bits: int | None = typer.Option(
        None, help="With --bits: round attention, dense layers and the output head to 8 bits; default: do not."
    ),
    dtype: str | None = typer.Option(
        None, help="bfloat16, float16 or float32; default: as stored. With --bits, of all that is not rounded."
    ),
) -> None:
    """Write a model in another layout: `moesaic convert runs/tiny tiny-int8 --to moesaic --bits 8`.

    --to moesaic may be ended at any moment: the same command goes on where it was.
    """
    if target.exists():
        raise ConfigError(f"'{target}' exists already", "choose a new folder")
    if to is Layout.moesaic:
        _convert_to_moesaic(source, target, bits, core_bits, dtype)
        return
    if bits is not None or core_bits is not None:
        raise ConfigError(
            "--to hf writes no weights of few bits", "add --to moesaic, or leave out --bits and --core-bits"
        )
    from moesaic.checkpoint.convert import convert_to_hf

    known = convert_to_hf(source, target, dtype)
    reader = (
        "transformers and moesaic load it" if known else "no family of transformers says all of it; moesaic loads it"
    )
    error_console().print(f"wrote {target} ({reader})")


def _convert_to_moesaic(source: str, target: Path, bits: int | None, core_bits: int | None, dtype: str | None) -> None:
    from moesaic.checkpoint.convert import convert_to_moesaic
    from moesaic.checkpoint.read_rate import measure_read_rates

    rates = measure_read_rates(source) if bits is None else None
    if rates is not None:
        pays = "" if rates.is_worth else ": records are not worth the space for speed alone"
        error_console().print(
            f"experts are read at {format_bytes(rates.in_place)}/s where they are, at {format_bytes(rates.repacked)}/s "
            f"as records{pays}"
        )
    try:
        with progress_bar("writing experts") as show:
            index = convert_to_moesaic(source, target, bits, dtype, show, core_bits)
    except KeyboardInterrupt:
        error_console().print("interrupted; the same command goes on where it was")
        raise
    if index.bits is not None:
        _print_errors(index)
    num_pages = sum(len(file.checksums) for file in index.files.values())
    size = format_bytes(index.layout.num_bytes)
    error_console().print(f"wrote {target}: {num_pages} experts of {size} each (moesaic alone loads it)")


def _print_errors(index: "PageIndex") -> None:
    """Print what rounding cost, by layer."""
    from rich.table import Table

    names = list(next(iter(index.files.values())).decibels)
    headings = [f"{name}, {which}" for name in names for which in ("mean", "worst")]
    table = Table("layer", *headings, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for layer, file in index.files.items():
        cells = []
        for name in names:
            rounded = [decibels for decibels in file.decibels[name] if decibels is not None]
            cells += [f"{sum(rounded) / len(rounded):.1f}", f"{min(rounded):.1f}"] if rounded else ["exact", "exact"]
        table.add_row(str(layer), *cells)
    console = error_console()
    console.print(f"signal to noise of weights of {index.bits} bits, dB; experts of a layer")
    console.print(table)
    known = [decibels for decibels in index.core_decibels.values() if decibels is not None]
    if known:
        console.print(
            f"dense core, {len(known)} matrices of {index.core_bits} bits: mean {sum(known) / len(known):.1f}, "
            f"worst {min(known):.1f}"
        )
