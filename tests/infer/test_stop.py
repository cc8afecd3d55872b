"""Stop strings in text that arrives in pieces, however it is cut."""

from hypothesis import given
from hypothesis import strategies as st

from moesaic.infer.stop import StopScanner

# Few letters, so that stop strings occur, overlap and contain each other.
LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3).map(tuple)


def _text_before_first_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """Grow the text character by character until it ends in a stop string: the obvious specification."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


def _scan(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    told = [scanner.push(piece) for piece in pieces]
    return "".join([*told, scanner.flush()]), scanner.stopped


@given(pieces=st.lists(LETTERS, max_size=6), stops=STOPS)
def test_scanner_tells_the_text_before_the_first_stop_when_cut_in_any_way(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    assert _scan(pieces, stops) == _text_before_first_stop("".join(pieces), stops)


@given(pieces=st.lists(LETTERS, max_size=6), stops=STOPS)
def test_scanner_holds_back_no_more_than_a_beginning_of_a_stop_when_pieces_arrive(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    scanner, told = StopScanner(stops), ""
    for number, piece in enumerate(pieces, start=1):
        told += scanner.push(piece)
        if scanner.stopped:
            return
        held = "".join(pieces[:number])[len(told) :]
        assert held == "" or any(stop.startswith(held) and held != stop for stop in stops)


def test_scanner_tells_nothing_more_when_it_has_stopped() -> None:
    scanner = StopScanner(("b",))
    assert (scanner.push("ab"), scanner.push("a"), scanner.flush()) == ("a", "", "")


def test_scanner_cuts_before_the_stop_that_ends_first_when_another_begins_earlier() -> None:
    assert _scan(["abcd"], ("abcd", "c")) == ("ab", True)
    assert _scan(["a", "b", "c", "d"], ("abcd", "c")) == ("ab", True)
