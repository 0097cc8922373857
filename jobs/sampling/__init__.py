"""Generated bins: what is in them, what their records say and how a photo of them looks."""
