"""The doctor advises packages for an accelerator where there is one."""

import pytest

from elm_jax.launch import doctor


def make_file(file, content=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_accelerators_are_known_by_the_files_of_their_drivers(tmp_path):
    assert doctor._find_accelerators(tmp_path) == []
    make_file(tmp_path / "dev/nvidiactl")
    assert doctor._find_accelerators(tmp_path) == []
    make_file(tmp_path / "dev/nvidia0")
    assert doctor._find_accelerators(tmp_path) == ["cuda"]
    make_file(tmp_path / "dev/accel3")
    assert doctor._find_accelerators(tmp_path) == ["cuda", "tpu"]


@pytest.mark.parametrize(
    ("vendor", "device", "found"),
    [
        ("0x1ae0", "0x0063", ["tpu"]),  # a v5e
        ("0x1ae0", "0x006f", ["tpu"]),  # a v6e
        ("0x1ae0", "0x0042", []),  # a network card of the same vendor
        ("0x10de", "0x0063", []),
    ],
)
def test_a_tpu_without_a_driver_file_of_its_own_is_known_by_the_bus(tmp_path, vendor, device, found):
    make_file(tmp_path / "sys/bus/pci/devices/0000:00:04.0/vendor", f"{vendor}\n")
    make_file(tmp_path / "sys/bus/pci/devices/0000:00:04.0/device", f"{device}\n")
    make_file(tmp_path / "sys/bus/pci/devices/0000:00:05.0/device", "0x0063\n")  # whose vendor is not told
    assert doctor._find_accelerators(tmp_path) == found
