#!/usr/bin/env bash
# Ends the SLURM that start.sh began in the folder $1: its daemons, by the ids that they wrote there, and what still
# watches over a job or waits for one, for a controller that is gone. Each is known by the configuration it was given.
for file in "$1"/slurmd-*.pid "$1"/slurmctld.pid "$1"/munge/pid; do
    [[ -f $file ]] && kill "$(cat "$file")" 2>/dev/null
done
for process in /proc/[0-9]*; do
    [[ $(cat "$process/comm" 2>/dev/null) =~ ^(slurm|srun) ]] && grep -qz "^SLURM_CONF=$1/slurm.conf$" "$process/environ" 2>/dev/null &&
        kill -KILL "${process#/proc/}" 2>/dev/null
done
exit 0
