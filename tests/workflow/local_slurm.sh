#!/usr/bin/env bash
# A Slurm cluster of two nodes, both this machine, with all its files in FOLDER, and links to its configuration in
# /etc/slurm: Snakemake's executor takes SLURM_CONF out of a job's environment.
#   tests/workflow/local_slurm.sh start FOLDER CONTROLLER_PORT NODE_PORT NODE_PORT
#   tests/workflow/local_slurm.sh stop FOLDER
# Needs Debian's packages slurm-wlm and munge, and root. There is no accounting, and GPUs are counted, not there.
set -euo pipefail
folder=$(realpath "$2")

stop() {
    for name in slurmctld slurmd-seam1 slurmd-seam2 munged; do
        [ ! -f "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")" || true
    done
    for name in slurm.conf gres.conf; do
        [ "$(readlink "/etc/slurm/$name")" != "$folder/$name" ] || rm "/etc/slurm/$name"
    done
}

if [ "$1" = stop ]; then
    stop
    exit
fi

if [ -e /etc/slurm/slurm.conf ]; then
    echo "/etc/slurm/slurm.conf is there: this machine belongs to a cluster" >&2
    exit 1
fi
trap stop ERR
mkdir -p "$folder/state"
(umask 077 && head --bytes 1024 /dev/urandom > "$folder/munge.key")
cat > "$folder/slurm.conf" << END
ClusterName=seam
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$3
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
KillWait=20
NodeName=DEFAULT CPUs=8 RealMemory=512000 Gres=gpu:2 State=UNKNOWN
NodeName=seam1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$4
NodeName=seam2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$5
PartitionName=all Nodes=ALL Default=YES State=UP
END
printf 'Name=gpu File=/dev/%s\n' null zero > "$folder/gres.conf"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
ln --symbolic "$folder/slurm.conf" "$folder/gres.conf" /etc/slurm
slurmctld
slurmd -N seam1
slurmd -N seam2
for _ in $(seq 50); do
    [ "$(sinfo --noheader --format '%D %t')" != "2 idle" ] || exit 0
    sleep 0.2
done
sinfo
tail --lines 20 "$folder"/slurm*.log
false
