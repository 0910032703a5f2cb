"""What a round's time goes into: the stopwatch's own arithmetic, and one small real round."""

import pytest

from simulations import bench_profile
from simulations.bench_profile import PASSES, REST, Stopwatch


class Model:
    """Takes its time, by the clock of these tests."""

    now = 0.0

    def answer(self) -> None:
        Model.now += 2
        self.compute()

    def compute(self) -> None:
        Model.now += 5


def test_a_section_holds_its_own_time_alone() -> None:
    watch = Stopwatch(clock=lambda: Model.now)
    with (
        watch.watching(Model, "answer", "answers"),
        watch.watching(Model, "compute", PASSES),
    ):
        Model().answer()
        Model.now += 1
    watch.tell()
    Model().answer()
    assert watch.seconds == {"answers": 2, f"answers{PASSES}": 5, REST: 1}
    assert watch.passes == 5


@pytest.mark.slow
def test_a_small_round(embedded_assets: None) -> None:
    few = {"k-shot": 2, "public-per-class": 1, "queries-per-round": 30, "test-size": 2}
    result = bench_profile.run(2, few)
    assert result["seconds"].keys() >= {"answers", f"answers{PASSES}", f"proposals{PASSES}", REST}
    assert result["queries"] > 30
    assert 0 < result["beside_models"] < 1
    assert "as a share of the time of answers: " in bench_profile.markdown(result)
    # Other examples: what a process has asked it remembers.
    others = {**few, "seed": 1, "num-server-rounds": 1}
    assert 0 < bench_profile.processor_seconds_of_passes(2, others) < 300
