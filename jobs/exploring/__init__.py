"""The parts of `jobs.explore`: what the records say, what the photos look like, the page."""
