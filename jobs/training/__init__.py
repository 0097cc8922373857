"""The parts of `jobs.train`: labelled bins, the network under Ray Train, the bundle and its report."""
