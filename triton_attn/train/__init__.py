"""The training application: its dependencies are the extra `train`."""
