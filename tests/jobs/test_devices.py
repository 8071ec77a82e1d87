"""A device is found by its name, or refused with what to do."""

import pytest
import torch

from handful.errors import SettingsError
from handful.jobs.devices import choose_device


def test_the_device_is_found_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="tpu"):
        choose_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has it")
def test_a_device_that_is_not_there_is_refused():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(SettingsError, match="no cuda"):
        choose_device("cuda")
