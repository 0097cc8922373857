"""The contracts: what tables and documents look like. Imports neither ray nor torch."""
