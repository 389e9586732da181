import time

from vae_edge.benchmark import time_in_turns


def test_calls_are_timed_in_turns_and_the_first_of_a_turn_is_not_counted():
    order: list[str] = []
    first, second = time_in_turns([lambda: order.append("a"), lambda: order.append("b")], seconds=0.0, burst=2, least=4)
    assert len(first) == len(second) == 4
    assert "".join(order) == "aaabbb" * 2


def test_times_are_those_of_the_calls():
    slow, fast = time_in_turns([lambda: time.sleep(0.01), lambda: None], seconds=0.1)
    assert min(slow) > 9e6 and min(fast) < 1e6
    assert time_in_turns([], seconds=1.0) == []
