#!/usr/bin/env bash
# Starts a real SLURM of two nodes on this machine, in the folder $1, on free ports of the loopback; stop.sh ends it.
# Needs root, and Debian's slurm-wlm and munge, which it installs where apt can. Exit code 77: it cannot start here.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cannot() { echo "slurm does not start here: $*" >&2; exit 77; }

[[ $EUID -eq 0 ]] || cannot "it needs root"
if ! command -v slurmctld slurmd munged sbatch >/dev/null; then
    command -v apt-get >/dev/null || cannot "slurm-wlm and munge are not installed, and there is no apt-get"
    patience=(-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60)
    { apt-get "${patience[@]}" update && DEBIAN_FRONTEND=noninteractive apt-get "${patience[@]}" install -y --no-install-recommends slurm-wlm munge; } \
        >"$folder/apt.log" 2>&1 || cannot "apt-get does not install slurm-wlm and munge, see $folder/apt.log"
fi

# A munge of its own, so that nothing of the machine's is touched.
mkdir -p "$folder"/{munge,spool/node1,spool/node2,state,log}
chmod 755 "$folder" "$folder/munge"
[[ -f "$folder/munge/key" ]] || (umask 077; head -c 1024 /dev/urandom >"$folder/munge/key")
chown -R munge "$folder/munge"
setpriv --reuid munge --regid munge --clear-groups \
    munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --force || cannot "munged does not start"

read -r ctl one two < <(python3 -c '
import socket
some = [socket.socket() for _ in range(3)]
for s in some: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in some))')
host=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=two
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctl
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for as long as credentials last, by default two minutes.
AuthInfo=socket=$folder/munge/socket,cred_expire=${CRED_EXPIRE:-60}
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=${SLURMD_TIMEOUT:-10}
KillWait=5
MinJobAge=300
MaxArraySize=1001
MaxJobCount=${MAX_JOBS:-1000}
OverTimeLimit=0
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$one CPUs=1 RealMemory=8000 State=UNKNOWN
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$two CPUs=1 RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes=node1,node2 Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=high Nodes=node1,node2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
CONF
# No control groups. Before 23.11 there was no plugin "disabled"; that of version 1 is loaded, and used by nothing.
version=$(slurmctld -V | grep -oE '[0-9]+\.[0-9]+' | head -1)
plugin=$([[ $(printf '%s\n' 23.11 "$version" | sort -V | head -1) == 23.11 ]] && echo disabled || echo cgroup/v1)
echo "CgroupPlugin=$plugin" >"$folder/cgroup.conf"
export SLURM_CONF="$folder/slurm.conf"
slurmctld -c || cannot "slurmctld does not start, see $folder/log"
for node in node1 node2; do
    slurmd -N "$node" || cannot "slurmd does not start, see $folder/log"
done
for _ in $(seq 60); do
    [[ $(sinfo --noheader --format=%T --partition=low | sort -u) == idle ]] && { echo "$SLURM_CONF"; exit 0; }
    sleep 0.5
done
sinfo >&2 || true
cannot "its nodes do not come up, see $folder/log"
