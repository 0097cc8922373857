"""The steps of the audit, in the order of the data: no argv, no ray.init, no logging set-up."""
