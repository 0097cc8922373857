"""What can be run: sample, ingest, explore, train, tune, evaluate, audit, recount, report, serve."""
