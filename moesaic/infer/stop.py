"""Finding stop strings in text that arrives in pieces."""


class StopScanner:
    """Holds back text that may be the beginning of a stop string.

    The pieces that `push` and `flush` return, joined, are the text before the stop string that is complete first,
    however the text is cut; of two that end together, before the longer one.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take new text; return what is final of all so far."""
        if self.stopped:
            return ""
        self._held += text
        places = [(self._held.find(stop), len(stop)) for stop in self._stops]
        found = [(place + length, place) for place, length in places if place >= 0]
        if found:
            self.stopped = True
            _, first = min(found)
            final, self._held = self._held[:first], ""
            return final
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        final, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return final

    def flush(self) -> str:
        """Return what was held back; nothing more comes."""
        final, self._held = self._held, ""
        return final

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest beginning of a stop string that ends the held text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
