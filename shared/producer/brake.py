"""The brake on invalid events: a wrong schema pauses its entity instead of flooding the parked table."""

from collections import deque

from shared.entities import PauseRules


class Brake:
    """Counts pages of (events, invalid ones); remembers about ``rules.events`` events, page by page.

    The window is the last ``rules.events`` events or ``rules.seconds`` seconds, whichever is shorter.
    """

    def __init__(self, rules: PauseRules) -> None:
        self._rules = rules
        self._pages: deque[tuple[float, int, int]] = deque()  # (monotonic seconds, events, invalid)
        self._in_a_row = 0

    def refusal(self, monotonic_s: float, invalid: list[bool]) -> str | None:
        """Why the entity must pause before this page is parked, or ``None``; a flag per event, in order."""
        if (longest := self._longest_row(invalid)) >= self._rules.in_a_row_max:
            return f"{longest} invalid events in a row"
        window = [page for page in self._pages if monotonic_s - page[0] < self._rules.seconds]
        events, bad = len(invalid), sum(invalid)
        for _, page_events, page_bad in reversed(window):
            if events >= self._rules.events:
                break
            events += page_events
            bad += page_bad
        if bad > self._rules.invalid_max and bad > events * self._rules.share_max:
            return f"{bad} of the last {events} events are invalid"
        return None

    def count(self, monotonic_s: float, invalid: list[bool]) -> None:
        """Record a page that was let through. Pages without new events, an idle entity's polls, are not kept."""
        if not invalid:
            return
        self._in_a_row = self._trailing_row(invalid)
        self._pages.append((monotonic_s, len(invalid), sum(invalid)))
        known = sum(page[1] for page in self._pages)
        while len(self._pages) > 1 and known - self._pages[0][1] >= self._rules.events:
            known -= self._pages.popleft()[1]

    def _longest_row(self, invalid: list[bool]) -> int:
        longest = row = self._in_a_row
        for flag in invalid:
            row = row + 1 if flag else 0
            longest = max(longest, row)
        return longest if any(invalid) else 0

    def _trailing_row(self, invalid: list[bool]) -> int:
        for distance, flag in enumerate(reversed(invalid)):
            if not flag:
                return distance
        return self._in_a_row + len(invalid)
