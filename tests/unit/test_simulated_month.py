"""A simulated month of some connections: `make bench PARTS=proof` in small. What it simulates, `bench.month` says."""

from __future__ import annotations

from bench.month.life import live


def test_in_a_month_with_other_people_no_verdict_is_false_and_nothing_is_without_a_date_or_a_person() -> None:
    month = live(seed=1, numbers=range(60))
    contradictions = [each for life in month for each in life["contradictions"] if each["due"]]

    assert 500 < sum(life["jobs"] for life in month), "it simulates next to nothing"
    assert [] == [each for life in month for each in life["false"]]
    assert [] == [each for life in month for each in life["undated"]]
    assert 20 < len(contradictions)
    assert [] == [each for each in contradictions if not each["in_time"]]
    assert [] == [each for life in month for each in life["invented"]]
