"""What can be run: sample, ingest, explore, train, evaluate, audit, recount, report, serve."""
