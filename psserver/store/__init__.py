"""Where the parameters of this shard are."""
