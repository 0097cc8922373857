"""What every job stands on: storage behind a URI, the cluster, exit codes, bundles at a URI."""
