"""The measuring itself: ratios of known timings, and processes that burn known CPU time and memory."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "protocol.py"


@pytest.fixture(scope="module")
def protocol():
    spec = importlib.util.spec_from_file_location("benchmark_protocol", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def python(code):
    return [sys.executable, "-I", "-S", "-c", code]


BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def test_ratio_is_of_rounds_and_not_of_medians(protocol):
    ratio = protocol.paired_ratio([2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 1.0, 2.0, 2.0, 2.0])
    assert ratio == {"median": 4.0, "lower": 3.0, "upper": 4.0, "win": True}


def test_a_win_needs_the_lower_quartile(protocol):
    assert protocol.paired_ratio([1.0, 1.0, 3.0, 3.0, 3.0], [1.0] * 5)["win"] is False  # lower quartile just 1
    assert protocol.paired_ratio([0.9, 1.1, 3.0, 3.0, 3.0], [1.0] * 5)["win"] is True


def test_one_round_has_no_quartiles(protocol):
    with pytest.raises(ValueError, match="at least 2 rounds"):
        protocol.paired_ratio([1.0], [1.0])


def test_rounds_alternate_after_the_warm_up(protocol):
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "AB"}
    timings = protocol.rounds(variants, count=3, warm_up=1)
    assert "".join(order) == "AB" + "AB" + "BA" + "AB"
    assert [len(timings[name]) for name in "AB"] == [3, 3]


def test_compared_gives_the_known_ratio_of_the_chosen_clock(protocol):
    timings = {
        "peer": [protocol.Timing(2.0 * k, 9.0, 0.0) for k in (1, 2, 3)],
        "ours": [protocol.Timing(1.0 * k, 3.0, 0.0) for k in (1, 2, 3)],
    }
    found = protocol.compared(timings, "peer")
    assert found["ours"]["ratio"]["median"] == 2 and found["peer"]["ratio"]["median"] == 1
    assert found["ours"]["seconds"] == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": 3}
    assert protocol.compared(timings, "peer", "wall")["ours"]["ratio"]["median"] == 3


def test_a_disturbed_round_is_left_out_for_all(protocol):
    calm, disturbed = protocol.Timing(1, 1, 0.01), protocol.Timing(1, 5, 0.5)
    timings = protocol.quiet({"peer": [calm, disturbed, calm], "ours": [calm, calm, disturbed]})
    assert timings == {"peer": [calm], "ours": [calm]}


def test_timed_counts_cpu_and_not_sleep(protocol):
    timing = protocol.timed(lambda: (burn(0.1), time.sleep(0.2)))
    assert 0.1 <= timing.cpu < 0.2 and timing.wall >= 0.3


def test_a_process_costs_the_cpu_it_burns(protocol):
    cost = protocol.process(python(BURN.format(0.4) + "\ntime.sleep(0.3)\nprint('done')"))
    assert 0.4 <= cost.cpu < 0.8 and cost.wall >= cost.cpu + 0.25
    assert cost.output == "done\n"


def test_memory_is_that_of_the_process_and_not_of_its_parent(protocol):
    held = bytearray(b"x" * 300_000_000)  # of this process
    small = protocol.process(python("pass")).max_rss_mb
    large = protocol.process(python("a = bytearray(b'x' * 200 * 2**20)")).max_rss_mb
    assert len(held) and small < 60
    assert large - small + 20 >= 200 and large < 2 * 200 + small + 20  # the literal and its copy


def test_a_failing_process_is_an_error_with_its_output(protocol):
    with pytest.raises(RuntimeError, match="ended with 3:\nwhy"):
        protocol.process(python("print('why'); raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match="could not be started"):
        protocol.process(["no-such-program"])


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="foreign load is known on Linux only")
def test_a_busy_process_is_foreign_load(protocol):
    import os

    with protocol.busy_process():
        timing = protocol.timed(lambda: time.sleep(0.5))
    assert timing.foreign > 0.3 / os.cpu_count()  # it may share its core with others


def test_process_rounds_alternate(protocol, tmp_path):
    log = tmp_path / "log"
    commands = {name: python(f"open({str(log)!r}, 'a').write({name!r})") for name in "AB"}
    found = protocol.process_rounds(commands, count=2, warm_up=1)
    assert log.read_text() == "BA" + "AB" + "BA" and [len(values) for values in found.values()] == [2, 2]


def test_reports_hold_the_machine_and_timings(protocol, tmp_path):
    protocol.write_report(tmp_path / "new" / "r.json", {"a": protocol.Timing(1.0, 2.0, None)})
    report = json.loads((tmp_path / "new" / "r.json").read_text())
    assert report["a"] == {"cpu": 1.0, "wall": 2.0, "foreign": None}
    assert {"cpu", "flags", "cores", "threads", "load", "packages"} <= report["machine"].keys()


@pytest.mark.slow  # of this machine, some seconds of products and convolutions
def test_ceilings_are_rates(protocol):
    limits = protocol.ceilings(repeats=1)
    assert limits.keys() == {"gemm_fp32", "conv_fp32", "gemm_bf16", "conv_bf16"} and min(limits.values()) > 0


def test_markdown(protocol):
    assert protocol.markdown(["a", "b"], [["x", 0.12345], [True, 12345.6]]) == (
        "| a | b |\n| --- | --- |\n| x | 0.123 |\n| True | 12,346 |\n"
    )
