"""The parts of `jobs.tune`."""
