"""`moesaic generate`: complete a prompt."""

import sys
from dataclasses import asdict
from typing import Any

import typer

from moesaic.cli.output import error_console, print_json, progress_bar
from moesaic.errors import CheckpointError, RequestError
from moesaic.units import format_bytes


def generate(
    model: str = typer.Argument(
        help="A Hugging Face folder, a run folder of `moesaic train`, a checkpoint of a run, or a hub id."
    ),
    prompt: str = typer.Argument(help="The text to go on from; '-' reads standard input."),
    max_tokens: int = typer.Option(128, help="Most tokens to generate."),
    temperature: float = typer.Option(0.0, help="0 takes the best token; higher is more random."),
    top_k: int | None = typer.Option(None, help="Keep this many best tokens."),
    top_p: float | None = typer.Option(None, help="Keep the best tokens that reach this probability together."),
    min_p: float | None = typer.Option(None, help="Keep tokens with this share of the best one's probability."),
    stop: list[str] = typer.Option([], help="End before this string; may be given again."),
    seed: int | None = typer.Option(None, help="Seed of the random draws."),
    ignore_eos: bool = typer.Option(False, "--ignore-eos", help="Go on after an end token."),
    chat: bool = typer.Option(False, "--chat", help="Send the prompt as a user's message in the chat template."),
    dtype: str | None = typer.Option(None, help="bfloat16, float16 or float32; default: as stored."),
    memory: str | None = typer.Option(
        None, help="All that the process may hold, such as 4GiB; experts beyond it are read when they are needed."
    ),
    device: str | None = typer.Option(None, help="That computes: cpu or cuda; default: cpu."),
    device_memory: str | None = typer.Option(
        None, help="What the model may hold on the CUDA device, such as 8GiB; default: four fifths of what is free."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of text."),
) -> None:
    """Generate text: `moesaic generate runs/tiny "def main("`."""
    from moesaic.infer.engine import LLM
    from moesaic.infer.request import SamplingParams

    params = SamplingParams(max_tokens, temperature, top_k, top_p, min_p, tuple(stop), seed, ignore_eos)
    with progress_bar("loading experts") as show:
        llm = LLM(model, dtype=dtype, memory=memory, on_progress=show, device=device, device_memory=device_memory)
    text = _read_input() if prompt == "-" else prompt
    request: Any = llm.chat_prompt([{"role": "user", "content": text}]) if chat else text
    if as_json:
        print_json(asdict(llm.generate(request, params)[0]) | {"stats": llm.stats()})
        return
    completion = None
    # The prompt is shown with the first piece: a request that is refused prints nothing.
    shown = "" if chat else text
    for delta in llm.stream(request, params):
        print(shown + delta.text, end="", flush=True)
        shown, completion = "", delta.completion
    print()
    assert completion is not None, "a stream ends with its completion"
    if completion.error is not None:
        raise CheckpointError(completion.error, "look at the disk, or fetch the file again")
    usage = completion.usage
    error_console().print(
        f"{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} generated, "
        f"ended by {completion.finish_reason}{_tell_paging(llm.stats())}",
        style="dim",
    )


def _tell_paging(stats: dict[str, Any]) -> str:
    if stats.get("resident") == stats.get("pages"):
        return ""
    return (
        f"; of {stats['pages']} experts {stats['slots']} fit the memory, {stats['hit_rate']:.0%} of those needed were "
        f"there, {format_bytes(stats['bytes_read'])} were read"
    )


def _read_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as failure:
        raise RequestError(f"standard input is no text: {failure}", "send text in UTF-8") from None
