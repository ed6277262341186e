#!/usr/bin/env bash
# Ends the SLURM that start.sh began in the folder $1: its own processes, by the ids that they wrote there.
for file in "$1"/slurmd-*.pid "$1"/slurmctld.pid "$1"/munge/pid; do
    [[ -f $file ]] && kill "$(cat "$file")" 2>/dev/null
done
exit 0
