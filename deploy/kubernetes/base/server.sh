#!/bin/sh
# One program for all pods of the StatefulSet: psserver-0 is the coordinator, the others join it.
# From the pod: POD_NAME, SHARDS, COORDINATOR and ADDRESS (HOST:PORT). What follows are flags of psserver.
set -eu
ordinal=${POD_NAME##*-}
if [ "$ordinal" -eq 0 ]; then
  exec psserver --shards "$SHARDS" "$@"
fi
exec psserver --join "$COORDINATOR" --shard "$ordinal" --advertise "$ADDRESS" "$@"
