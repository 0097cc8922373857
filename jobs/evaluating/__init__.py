"""The parts of `jobs.evaluate`: predictions of labelled bins, figures from them, the page."""
