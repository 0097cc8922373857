"""The steps of `jobs.ingest`: keys are listed, exchanged by stem, matched, and written with their records."""
