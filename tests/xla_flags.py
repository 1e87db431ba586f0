"""XLA's flags in tests: how many devices a CPU plays, and that programs compile fast rather than run fast."""

# The emitters of fusions take three times as long for a tiny network as what came before them.
FAST_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int) -> str:
    """Returns the flags of a process with so many devices."""
    return f"--xla_force_host_platform_device_count={devices} {FAST_TO_COMPILE}"
