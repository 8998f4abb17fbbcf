"""The tensor's vocabulary: batches, tables, shards."""
