"""What comes back from the floor: counts taken in, resolved, and what is learned from them."""
