"""Whether a machine was quiet while something was timed."""

import json
import subprocess
import sys
import time

import pytest

from gen.eval.bench import MachinePeak
from gen.eval.quiet import LoadMeter, QuietCheck, _busy_seconds, disturbance


def test_two_ceilings_and_the_work_of_others_tell_a_disturbance():
    peak = MachinePeak(2e12, 40e9, "")
    assert disturbance(peak, MachinePeak(1.85e12, 43e9, ""), 0.09) is None
    assert disturbance(peak, peak, None) is None
    assert disturbance(peak, peak, 0.31) == "other processes used 31% of the processors"
    slower = disturbance(peak, MachinePeak(1.5e12, 60e9, ""), 0.0)
    assert slower == (
        "the ceiling of products was 2 TFLOP/s before and 1.5 after; "
        "the ceiling of copies was 40 GB/s before and 60 after"
    )


@pytest.mark.parametrize("others", [0.02, 0.3])
def test_what_was_timed_under_load_is_no_result_unless_it_is_processor_time(others, monkeypatch, tmp_path, capsys):
    peak, file = MachinePeak(2e12, 4e10, "given"), tmp_path / "times.json"
    monkeypatch.setattr("gen.eval.quiet.measure_peak", lambda context: peak)
    monkeypatch.setattr("gen.eval.quiet.LoadMeter.others", lambda meter: others)
    with QuietCheck() as check:
        pass
    assert check.write(file, {"ms": 2.0}, wall=False)
    content = json.loads(file.read_text())
    assert content["ms"] == 2.0 and content["others"] == others
    assert content["peak"] == content["peak_after"] == vars(peak)
    assert {"name", "cores", "threads", "cpu"} == content["machine"].keys() and "torch" in content["versions"]
    file.unlink()
    assert check.write(file, {"ms": 2.0}) == file.exists() == (others < 0.1)
    refused = f"{file}: not written, for the machine was not quiet: other processes used 30%"
    assert (refused in capsys.readouterr().out) == (others > 0.1)


@pytest.mark.skipif(_busy_seconds() is None, reason="no /proc/stat")
def test_the_work_of_another_process_is_seen_and_ones_own_is_not(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    seconds = iter([(0.0, 100.0, 10.0), (10.0, 117.0, 20.0), (10.0, None, 20.0)])
    monkeypatch.setattr("gen.eval.quiet._clocks", lambda: next(seconds))
    meter = LoadMeter()
    assert meter.others() == pytest.approx(7 / 20)  # 17 s of work in 10 s of two processors, 10 s of it one's own
    assert meter.others() is None


def test_the_system_s_clocks_are_read():
    before = _busy_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(3 * 10**6))"], check=True)
    time.sleep(0.02)
    assert before is None or _busy_seconds() > before
