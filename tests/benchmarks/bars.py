"""A measured figure beside its bar."""

from dataclasses import dataclass

INFINITY = float("inf")


@dataclass(frozen=True)
class Row:
    """One line of an acceptance table; passes within [low, high].

    `held` is what the tests hold a figure to whose bar is missed: (floor, ceiling). A row with an open bar on both
    sides only informs.
    """

    test: str
    measured: float
    low: float = -INFINITY
    high: float = INFINITY
    held: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        return bool(self.low <= self.measured <= self.high)

    @property
    def holds(self) -> bool:
        low, high = self.held or (self.low, self.high)
        return bool(low <= self.measured <= high)

    @property
    def bar(self) -> str:
        if self.low == -INFINITY:
            return "" if self.high == INFINITY else f"<= {self.high:g}"
        return f">= {self.low:g}" if self.high == INFINITY else f"{self.low:g} .. {self.high:g}"


def at_least(test: str, measured: float, low: float, held: float | None = None) -> Row:
    return Row(test, float(measured), low=low, held=None if held is None else (held, INFINITY))


def at_most(test: str, measured: float, high: float, held: float | None = None) -> Row:
    return Row(test, float(measured), high=high, held=None if held is None else (-INFINITY, held))


def within(test: str, measured: float, low: float, high: float) -> Row:
    return Row(test, float(measured), low, high)


def inform(test: str, measured: float) -> Row:
    return Row(test, float(measured))
