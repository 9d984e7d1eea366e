"""What the doctor found, one line each with what to do about it. Pure."""

import re
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, structs

from services.cli.outcome import DOWN, FINDING, OK, USAGE, aligned, printable

Verdict = Literal["ok", "note", "wrong", "config", "no answer"]
"""``note``: worth knowing, and fine; ``config``: a setting of ours is missing or wrong."""

CHECKS = (
    *("configuration", "secrets", "postgres", "kafka", "registry", "dynamodb", "buckets", "clocks", "disk", "source"),
)
"""In the order in which they are printed. ``source`` asks systems that aren't ours: only when wanted."""

_EXIT_CODES: dict[Verdict, int] = {"no answer": DOWN, "config": USAGE, "wrong": FINDING}


_VERDICTS: dict[int, Verdict] = {DOWN: "no answer", USAGE: "config"}
_REMEDY = re.compile(
    r"[;:] (?=(or )?(add|check|correct|create|give|lower|mount|name|raise|register|renew|run|see|set|use)\b)"
)
THING_WIDTH_MAX = 36
"""A longer one, as a path, pushes only its own text aside."""


class Finding(Struct, frozen=True):
    """``remedy`` is the command or setting that mends it; empty where ``text`` says all."""

    check: str
    verdict: Verdict
    thing: str
    text: str = ""
    remedy: str = ""


class Report:
    """What one check finds, in the order in which it looks."""

    def __init__(self, check: str) -> None:
        self.check = check
        self.findings: list[Finding] = []

    def ok(self, thing: str, text: str = "") -> None:
        self._add("ok", thing, text)

    def note(self, thing: str, text: str, remedy: str = "") -> None:
        self._add("note", thing, text, remedy)

    def wrong(self, thing: str, text: str, remedy: str = "") -> None:
        self._add("wrong", thing, text, remedy)

    def config(self, thing: str, text: str, remedy: str = "") -> None:
        self._add("config", thing, text, remedy)

    def no_answer(self, thing: str, text: str, remedy: str = "") -> None:
        self._add("no answer", thing, text, remedy)

    def meant(self, thing: str, exit_code: int, text: str, see: str = "") -> None:
        """An edge's exception in words, its advice at the end. ``see``: the setting that says where the server is."""
        verdict = _VERDICTS.get(exit_code, "wrong")
        for line in text.splitlines():
            what, remedy = parted(line)
            where = f"see {see}" if see else ""
            if verdict == "no answer" and see:
                remedy = f"start it, or {where}"
            self._add(verdict, thing, what, remedy or where)

    def judged(self, thing: str, judgements: Sequence["Judgement"], fine: str = "") -> None:
        """``ok`` with ``fine`` where nothing is wrong; notes stand beside it."""
        if not any(judgement.is_wrong for judgement in judgements):
            self.ok(thing, fine)
        for judgement in judgements:
            self._add("wrong" if judgement.is_wrong else "note", thing, judgement.text, judgement.remedy)

    @property
    def is_fine(self) -> bool:
        return all(found.verdict in ("ok", "note") for found in self.findings)

    @property
    def is_answered(self) -> bool:
        return all(found.verdict in ("ok", "note", "wrong") for found in self.findings)

    def instead(self, text: str) -> "Report":
        """What can't be had is another check's finding."""
        report = Report(self.check)
        for thing in dict.fromkeys(found.thing for found in self.findings):
            report.note(thing, text)
        return report

    def _add(self, verdict: Verdict, thing: str, text: str, remedy: str = "") -> None:
        found = Finding(self.check, verdict, printable(thing), printable(text), printable(remedy))
        if found not in self.findings:
            self.findings.append(found)


class Judgement(Struct, frozen=True):
    """What is to be said of one thing that was looked at."""

    text: str
    remedy: str = ""
    is_wrong: bool = True


def exit_code(findings: Sequence[Finding]) -> int:
    """A server that does not answer outweighs a setting, and that a finding."""
    return max((_EXIT_CODES.get(found.verdict, OK) for found in findings), default=OK)


def parted(text: str) -> tuple[str, str]:
    """A sentence, and the advice at its end."""
    ends = [found.span() for found in _REMEDY.finditer(text)]
    return (text[: ends[-1][0]], text[ends[-1][1] :]) if ends else (text, "")


def render(findings: Sequence[Finding]) -> list[str]:
    """One aligned line each, what to do below it, and the sum."""
    heads = aligned([[_shown(found.verdict), found.check, ""] for found in findings])
    left = max((len(head) for head in heads), default=0) + 2
    width = min(max((len(found.thing) for found in findings), default=0), THING_WIDTH_MAX)
    lines = []
    for found, head in zip(findings, heads, strict=True):
        lines.append(f"{head:{left}}{found.thing:{width}}  {found.text}".rstrip())
        if found.remedy:
            lines.append(f"{'':{left + width + 2}}do: {found.remedy}")
    return [*lines, "", summary(findings)]


def summary(findings: Sequence[Finding]) -> str:
    counts = {verdict: sum(found.verdict == verdict for found in findings) for verdict in ("ok", "note")}
    bad = len(findings) - sum(counts.values())
    notes = f", {_many(counts['note'], 'note')}" if counts["note"] else ""
    return f"{_many(bad, 'finding') if bad else 'nothing wrong'}{notes}, {counts['ok']} fine"


def document(findings: Sequence[Finding]) -> dict[str, object]:
    return {"findings": [structs.asdict(found) for found in findings], "exit_code": exit_code(findings)}


def _shown(verdict: Verdict) -> str:
    return verdict if verdict in ("ok", "note") else verdict.upper()


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
