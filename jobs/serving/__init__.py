"""The endpoint's parts: the network's deployment, the front that speaks HTTP, and what both agree on."""
