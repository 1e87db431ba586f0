"""The doctor advises packages for an accelerator where there is one."""

from elm_jax.launch import doctor


def test_accelerators_are_known_by_the_files_of_their_drivers(tmp_path):
    assert doctor._find_accelerators(tmp_path) == []
    (tmp_path / "nvidiactl").touch()
    assert doctor._find_accelerators(tmp_path) == []
    (tmp_path / "nvidia0").touch()
    assert doctor._find_accelerators(tmp_path) == ["cuda"]
    (tmp_path / "accel3").touch()
    assert doctor._find_accelerators(tmp_path) == ["cuda", "tpu"]
