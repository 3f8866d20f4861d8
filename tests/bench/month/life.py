"""One month of one connection: its jobs, its people, Trackstar's answers; and what came of it, against the truth."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from random import Random
from typing import Any

from bench.month.worker import POLICY, Row, Worker
from bench.month.world import DAY, END, HOUR, MINUTE, Order, Shop, Timeline, seconds_of
from worker.cancellation import answer as words
from worker.cancellation.status import FINAL, Evidence, Verdict
from worker.runtime.freshness import ASK_SECONDS

QUICK_SECONDS = 60.0  # a crawl of a connection whose crawls take no longer
_PROOFS = {Verdict.CANCELLED, Verdict.NOT_CANCELLED}
# What the request of a cancellation meets, in shares. It meets it once; afterwards the contract holds.
FATES = {
    "yes": 40,
    "yes, applied soon": 20,
    "yes, applied within days": 1,
    "yes, and never applied": 1,
    "done, and the answer lost": 8,
    "done, then a 502": 8,
    "taken, then a 502": 4,  # the warehouse applies it later, and refuses another
    "not done: a 503": 6,
    "refused": 6,
    "503 for hours": 1,
    "403": 2,
}
# What other people do with the order, in shares.
PEOPLE = {
    "nothing": 70,
    "cancel just before": 12,
    "cancel soon after": 4,
    "ship just before": 5,
    "ship soon after": 5,
    "ship after all": 4,  # what was cancelled
}


class Trackstar:
    """Answers a cancel as the warehouse wills, and reads from the copy."""

    def __init__(self, shop: Shop, dice: Random) -> None:
        self._shop = shop
        self._dice = dice
        self.fates: dict[str, str] = {}
        self._away: dict[str, float] = {}
        self._stored: set[str] = set()
        self.asked: set[str] = set()  # orders with which the warehouse was asked

    def cancel(self, order: Order) -> tuple[float, words.Answer]:
        """Return after how many seconds which answer comes."""
        took = self._dice.uniform(0.2, 2.0)
        if order.id in self._stored:
            return took, self._reply(200, order, "cancelled", replayed=True)
        if order.copy is None:
            return took, words.Reply(status=404, body="object", origin="trackstar", message="Order not found")
        fate = self.fates.pop(order.id, "yes")
        if fate == "503 for hours":
            self._away.setdefault(order.id, self._shop.timeline.now + self._dice.uniform(1, 30) * HOUR)
            if self._shop.timeline.now < self._away[order.id]:
                self.fates[order.id] = fate
            return took, words.Reply(status=503, body="object")
        if fate == "not done: a 503":
            return took, words.Reply(status=503, body="object")
        if fate == "403":
            return took, words.Reply(status=403, body="object", origin="trackstar")
        self.asked.add(order.id)
        if fate == "refused" or order.real != "open" or order.late is not None:
            return took, words.Reply(
                status=400, body="object", origin="integration", message="It cannot be cancelled."
            )
        return took, self._taken(order, fate)

    def _taken(self, order: Order, fate: str) -> words.Answer:
        """Let the warehouse take a cancel of an open order."""
        if fate == "taken, then a 502":
            # Where nobody tells of crawls, the last of the times to read back stands for the second one.
            self._shop.take(order, self._dice.uniform(5, 1800 if self._shop.told else 300), in_doubt=True)
            return words.Reply(status=502, body="not_json")
        if fate.startswith("yes, "):
            seconds = {"yes, applied soon": self._dice.expovariate(1 / 20), "yes, and never applied": 2 * END}
            self._shop.take(order, seconds.get(fate, self._dice.uniform(0, 3) * DAY), in_doubt=False)
            return self._reply(200, order, "open")
        self._shop.cancel_now(order, shown=fate != "done, then a 502")
        if fate == "done, then a 502":
            return words.Reply(status=502, body="not_json")
        self._stored.add(order.id)
        if fate == "done, and the answer lost":
            return words.NoReply("read_timeout", sent=True)
        return self._reply(200, order, "cancelled")

    def read(self, order: Order) -> words.Answer:
        if self._dice.random() < 0.02:
            return words.Reply(status=503, body="object")
        if order.copy is None:
            return words.Reply(status=404, body="object", origin="trackstar")
        return words.Reply(status=200, body="object", id=order.id, orders=(self.shown(order),))

    def shown(self, order: Order) -> words.Order:
        return _shown(order, order.copy or "open")

    def _reply(self, status: int, order: Order, shows: str, *, replayed: bool = False) -> words.Answer:
        return words.Reply(
            status=status, body="object", id=order.id, orders=(_shown(order, shows),), replayed=replayed
        )


def _shown(order: Order, status: str) -> words.Order:
    shipped = status == "shipped"
    return words.Order(id=order.id, status="fulfilled" if shipped else status, shipped=shipped, document="{}")


class Life:
    """One connection, from the first of the month to its last."""

    def __init__(self, seed: int, number: int) -> None:
        self.dice = Random(f"{seed}:{number}")
        self.timeline = Timeline()
        self.shop = Shop(self.dice, self.timeline)
        self.trackstar = Trackstar(self.shop, self.dice)
        self.worker = Worker(self.shop, self.timeline, self.trackstar, self._told)
        self.false: list[str] = []
        self.undated: list[str] = []
        self.not_ours: Counter[str] = Counter()  # never sent on, and cancelled by others
        self.settled: dict[str, float] = {}  # seconds from the end to proof or a person
        self.proofs: list[dict[str, Any]] = []
        for job in range(round(self.dice.lognormvariate(2, 1))):
            self._plan(f"o-{job}", self.dice.uniform(2 * HOUR, END - 6 * HOUR))

    def run(self) -> dict[str, Any]:
        self.timeline.run()
        rows = self.worker.rows.values()
        return {
            "jobs": len(rows),
            "young": Counter(str(row.verdict) for row in rows if row.was_absent),
            "verdicts": Counter(f"{row.status}, {row.verdict}" for row in rows if row.status in FINAL),
            "persons": Counter(str(row.needs_person) for row in rows if row.needs_person),
            "unproven": sum(row.status in FINAL and row.verdict not in _PROOFS for row in rows),
            "false": self.false,
            "undated": self.undated,
            "not_ours": self.not_ours,
            "proofs": self.proofs,
            "contradictions": [self._found(row) for row in rows if self._is_contradicted(row)],
            "invented": [row.order.id for row in rows if _is_told(row, "contradicted") and not _left(row.order)],
            "crawls": len(self.shop.completed),
            **self.worker.counts,
        }

    # -- what happens

    def _plan(self, name: str, when: float) -> None:
        dice, put = self.dice, self.timeline.put
        young = dice.random() < 0.05  # younger than the copy
        age = dice.uniform(0, 10 * MINUTE) if young else dice.uniform(9 * HOUR, 3 * DAY)
        send_by = when + dice.uniform(10 * MINUTE, 4 * HOUR) if dice.random() < 0.1 else None
        (fate,) = dice.choices(list(FATES), list(FATES.values()))
        (people,) = dice.choices(list(PEOPLE), list(PEOPLE.values()))
        self.trackstar.fates[name] = fate

        def create() -> None:
            self.shop.create(name)

        put(max(0.0, when - age), create)
        put(when, lambda: self.worker.receive(self.shop.orders[name], send_by))
        verb = {"cancel": "cancelled", "ship": "shipped"}.get(people.split()[0], "")
        if people.endswith("just before"):
            then = max(when - age + 1, when - dice.expovariate(1 / (20 * MINUTE)))
        elif people.endswith("soon after"):
            then = when + dice.expovariate(1 / (20 * MINUTE))
        else:
            then = when + dice.expovariate(1 / (2 * DAY))
        if verb:
            put(then, lambda: self._by_somebody(name, verb, needs_cancel=people == "ship after all"))

    def _by_somebody(self, name: str, verb: str, *, needs_cancel: bool) -> None:
        order = self.shop.orders[name]
        if (order.real == "cancelled") == needs_cancel:
            self.shop.somebody(order, verb)

    # -- what is compared with the truth

    def _told(self, row: Row) -> None:
        """Look at one row after each change of it."""
        self._is_dated(row)
        if row.known_by is not None:
            late = row.known_by + timedelta(seconds=ASK_SECONDS + 1)
            self.timeline.put(seconds_of(late), lambda: self._is_dated(row))
        if row.status not in FINAL:
            return
        row.said.append((self.timeline.now, row.verdict))
        if row.verdict in _PROOFS:
            self._is_true(row)
        if row.ended is not None and row.order.id not in self.settled and (row.verdict in _PROOFS or row.needs_person):
            self._is_settled(row)

    def _is_dated(self, row: Row) -> None:
        if not self.worker.has_a_date(row):
            self.undated.append(
                f"{row.order.id}: {row.status}, {row.verdict}, {row.known_by} at {self.timeline.now:.0f}"
            )

    def _is_true(self, row: Row) -> None:
        assert row.as_of is not None
        instant = seconds_of(row.as_of)
        real = row.order.real_at(instant)
        if row.evidence in {Evidence.REFUSAL, Evidence.NEVER_SENT} and row.order.id not in self.trackstar.asked:
            # It says that no request of ours was passed on; nobody has looked whether somebody else cancelled.
            self.not_ours[str(row.evidence)] += real == "cancelled"
            if row.order.cancelled_by_us <= instant:
                self.false.append(self._sentence(row, real, instant))
        elif row.evidence is Evidence.FRESH_READ_BACK and instant < (row.ended or 0.0) - 0.001:
            self.false.append(f"older than our request: {self._sentence(row, real, instant)}")
        elif not (row.order.was_cancelled(instant) if row.verdict is Verdict.CANCELLED else real != "cancelled"):
            self.false.append(self._sentence(row, real, instant))

    def _sentence(self, row: Row, real: str, instant: float) -> str:
        history = [(round(each.at), each.state, each.missed, each.touches) for each in row.order.changes]
        crawls = [(round(a), round(b)) for a, b in self.shop.completed if b > (row.ended or 0) - HOUR][:8]
        return (
            f"{row.order.id}: {row.verdict} by {row.evidence} as of {instant:.0f}, really {real} {history}; "
            f"ended {row.ended:.0f}, now {self.timeline.now:.0f}, told {self.shop.told}, crawls {crawls}, "
            f"copy {row.order.copied}, usual {self.shop.usual}, period {self.shop.period}"
        )

    def _is_settled(self, row: Row) -> None:
        assert row.ended is not None
        seconds = max(0.0, self.timeline.now - row.ended)
        self.settled[row.order.id] = seconds
        if seconds == 0.0:
            return
        shop = self.shop
        works = shop.told and not shop.trouble(row.ended, self.timeline.now)
        self.proofs.append(
            {
                "seconds": seconds,
                "period": shop.period,
                "told": shop.told,
                "works": works,
                "forced": shop.forced,
                "quick": shop.usual <= QUICK_SECONDS,
                "verdict": str(row.verdict) if row.verdict in _PROOFS else "person",
            }
        )

    def _is_contradicted(self, row: Row) -> bool:
        """Whether goods left after our verdict had said that they would not, while it was watched."""
        left = _left(row.order)
        if left is None or row.ended is None or not row.ended < left < row.ended + POLICY.watch:
            return False
        return next(said for when, said in reversed(row.said) if when <= left) in {Verdict.CANCELLED, Verdict.ACCEPTED}

    def _found(self, row: Row) -> dict[str, Any]:
        """Return whether a contradiction that Trackstar's copy shows was found before the next crawl had ended."""
        left, shown = (
            _left(row.order) or 0.0,
            next((when for when, what in row.order.copied if what == "shipped"), END),
        )
        told = next((when for when, what in row.news if what == "contradicted"), None)
        crawls = [end for _, end in self.shop.completed if end > shown]
        # Where nobody tells of crawls, it is looked by the hour.
        due = (crawls[0] if crawls and self.shop.told else shown + HOUR) + 2 * ASK_SECONDS
        return {
            "order": row.order.id,
            "left": left,
            "shown": shown,
            "told": told,
            "due": due < END,
            "in_time": told is not None and told <= due,
            "hours": None if told is None else (told - left) / HOUR,
        }


def _is_told(row: Row, what: str) -> bool:
    return any(word == what for _, word in row.news)


def _left(order: Order) -> float | None:
    return next((each.at for each in order.changes if each.state == "shipped"), None)


def live(seed: int, numbers: range) -> list[dict[str, Any]]:
    """Live the month of these connections."""
    return [Life(seed, number).run() for number in numbers]
