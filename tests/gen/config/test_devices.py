"""Devices: the CPU works; Apple's MPS, which has no float64, is refused in one line whether or not it is there."""

import pytest
import torch

from gen.cli.doctor import _cpu, _cuda, _mps
from gen.config.devices import check_device, is_accelerated
from gen.config.errors import UserError


def test_mps_is_refused_before_it_is_tried():
    check_device("cpu")
    for device in ("mps", torch.device("mps", 0)):
        with pytest.raises(UserError, match=r"cannot be used here \(MPS has no float64, .*\); allowed: cpu, cuda; see"):
            check_device(device)
    with pytest.raises(UserError, match=r"^the device 'abacus' cannot be used here"):
        check_device("abacus")


@pytest.mark.parametrize(("there", "used"), [("cuda", True), ("xpu", True), ("mps", False), (None, False)])
def test_a_run_trains_on_an_accelerator_that_has_float64(monkeypatch, there, used):
    device = None if there is None else torch.device(there)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: device)
    assert is_accelerated() is used


@pytest.mark.parametrize("there", [True, False])
def test_doctor_names_every_device(monkeypatch, there):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    cpu, cuda, mps = _cpu(), _cuda(), _mps()
    assert (cpu.status, mps.status) == ("ok", "none") and "cores" in cpu.detail and cuda.detail
    assert ("not used: MPS has no float64" in mps.detail) is there
