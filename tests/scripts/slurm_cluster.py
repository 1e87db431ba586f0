"""A Slurm of one node with eight GPUs that are none, on this machine, for as long as tests run."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

CONFIG = """
ClusterName=elm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000 Gres=gpu:8
PartitionName=all Nodes={host} Default=YES State=UP
"""


def is_installed():
    """Tells whether Slurm can be started here, which root alone can."""
    return os.geteuid() == 0 and all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch")))


@contextmanager
def serve(home):
    """Runs the cluster while the block runs; yields the variables that Slurm's programs want."""
    for name in ("state", "spool"):
        (home / name).mkdir()
    (home / "key").write_bytes(os.urandom(1024))
    (home / "key").chmod(0o600)
    values = {"home": home, "host": socket.gethostname().partition(".")[0]}
    values |= dict(zip(("controller", "daemon"), _find_ports(2), strict=True))
    (home / "slurm.conf").write_text(CONFIG.format(**values))
    for number in range(8):
        os.mknod(home / f"gpu{number}", 0o20600, os.makedev(1, 3))
    (home / "gres.conf").write_text(f"NodeName={values['host']} Name=gpu File={home}/gpu[0-7]\n")
    environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf")}
    munged = [f"--{name}-file={home / name}" for name in ("key", "pid", "log", "seed")]
    commands = [["munged", "--foreground", "--force", f"--socket={home}/munge.socket", *munged]]
    commands += [["slurmctld", "-D"], ["slurmd", "-D"]]
    started = []
    try:
        for command in commands:
            started.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
            time.sleep(1)
        for _ in range(100):
            said = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
            )
            if said.stdout.strip() == "idle":
                break
            time.sleep(0.2)
        else:
            raise AssertionError((home / "slurmctld.log").read_text())
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def _find_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
