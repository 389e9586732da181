import time

from vae_edge.benchmarking import time_interleaved


def test_calls_are_interleaved_and_the_first_of_a_round_is_not_timed():
    order: list[str] = []
    first, second = time_interleaved(
        [lambda: order.append("a"), lambda: order.append("b")], seconds=0.0, calls_per_round=2, min_calls=4
    )
    assert len(first) == len(second) == 4
    assert "".join(order) == "aaabbb" * 2


def test_times_are_those_of_the_calls():
    slow, fast = time_interleaved([lambda: time.sleep(0.01), lambda: None], seconds=0.1)
    assert min(slow) > 9e6 and min(fast) < 1e6
    assert time_interleaved([], seconds=1.0) == []
