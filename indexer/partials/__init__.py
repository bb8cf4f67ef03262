"""What a build has so far, as a record: the states of a shard or a checkpoint, restored and merged."""
