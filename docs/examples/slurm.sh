#!/bin/bash
# Builds an index with an array of Slurm jobs, each a shard of the corpus, and merges them when all are done.
#
#   bash slurm.sh MODEL CORPUS OUTPUT SHARDS [options of `neuron-indexer build`...]
#
# Run it again after failures: shards that are finished are not run again, the others continue at their last
# checkpoint. OUTPUT has to lie on storage that all nodes share.
set -eu

if [ $# -lt 4 ]; then
  echo "usage: bash slurm.sh MODEL CORPUS OUTPUT SHARDS [options...]" >&2
  exit 2
fi
model=$1 corpus=$2 output=$3 shards=$4
shift 4

# requeued when a node fails; told to stop 120 s before its time is up, which is enough for a checkpoint
array=$(sbatch --parsable --job-name=index --array="0-$((shards - 1))" --requeue --signal=TERM@120 \
  --time="${SHARD_TIME:-24:00:00}" --output="$output.slurm-%A-%a.log" ${SLURM_OPTIONS:-} <<JOB
#!/bin/bash
exec neuron-indexer build "$model" "$corpus" --output "$output" --shard "\$SLURM_ARRAY_TASK_ID/$shards" $*
JOB
)

sbatch --parsable --job-name=merge --dependency="afterok:$array" --output="$output.slurm-merge.log" <<JOB
#!/bin/bash
exec neuron-indexer merge "$output.shards" --output "$output"
JOB
